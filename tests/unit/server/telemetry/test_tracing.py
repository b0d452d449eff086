"""Spans: whose children they are, when they were, what is in them, and that they reach a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic, time_ns

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from otlp_receiver import receiving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from registry.errors import InvalidInput
from server.telemetry import tracing

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
ENGINE = ThreadPoolExecutor(1)


def engine(trace: tracing.ImageTrace) -> None:
    """What the engine's thread does with an image, in a thread that knows nothing of the request."""
    now = monotonic()
    trace.add("queue", now - 4, now - 3)
    trace.add("encode", now - 3, now - 2.5, images=2)
    trace.add("full", now - 2.5, now - 2, unet_rows=8)
    trace.add("partial", now - 2, now - 1, unet_rows=6, branch=3)
    trace.add("decode", now - 1, now, images=1)
    trace.end(now, tier="fast", outcome="ok")


async def generate(request: Request) -> JSONResponse:
    await asyncio.get_running_loop().run_in_executor(ENGINE, engine, tracing.image_trace())
    with tracing.span("file"):
        pass
    return JSONResponse({}, headers={"x-request-id": "mine"})


async def broken(request: Request) -> JSONResponse:
    return JSONResponse({}, 500)


APP = tracing.TracingMiddleware(
    Starlette(routes=[Route("/generate", generate, methods=["POST"]), Route("/b", broken, methods=["POST"])])
)
CLIENT = TestClient(APP)


@contextmanager
def traced(**settings) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(**settings)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    try:
        yield exporter
    finally:
        tracing.use(None)


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_an_images_parts_are_below_its_request_and_the_request_below_its_caller():
    with traced() as exporter:
        CLIENT.post("/generate", headers=TRACEPARENT)
    by_name = spans(exporter)
    request, image = by_name.pop("POST /generate"), by_name.pop("image")
    assert format(request.context.trace_id, "032x") == TRACE
    assert format(request.parent.span_id, "016x") == CALLER
    assert image.parent.span_id == by_name.pop("file").parent.span_id == request.context.span_id
    assert list(by_name) == ["queue", "encode", "full", "partial", "decode"]
    assert {span.parent.span_id for span in by_name.values()} == {image.context.span_id}
    assert {span.context.trace_id for span in by_name.values()} == {request.context.trace_id}
    assert dict(by_name["partial"].attributes) == {"unet_rows": 6, "branch": 3}
    assert dict(image.attributes) == {"tier": "fast", "outcome": "ok"}
    assert request.attributes["flexi.request_id"] == "mine"
    assert request.attributes["http.response.status_code"] == 200


def test_times_of_the_monotonic_clock_become_times_of_day():
    before = time_ns()
    with traced() as exporter:
        CLIENT.post("/generate")
    by_name = spans(exporter)
    image, parts = by_name["image"], [by_name[name] for name in ("queue", "encode", "full", "partial", "decode")]
    assert [part.end_time - part.start_time for part in parts] == pytest.approx([1e9, 5e8, 5e8, 1e9, 1e9], abs=1000)
    assert all(a.end_time == b.start_time for a, b in pairwise(parts))
    assert (image.start_time, image.end_time) == (parts[0].start_time, parts[-1].end_time)
    assert before - 5e9 < image.start_time < image.end_time < time_ns() + 1e9


def test_nothing_is_made_while_nobody_wants_spans():
    assert CLIENT.post("/generate", headers=TRACEPARENT).status_code == 200
    assert tracing.image_trace() is tracing.NO_TRACE


def test_a_request_that_is_not_sampled_has_untraced_images():
    with traced(sampler=ALWAYS_OFF) as exporter:
        assert CLIENT.post("/generate").status_code == 200
        assert tracing.image_trace() is tracing.NO_TRACE
    assert not exporter.get_finished_spans()


def test_names_of_spans_do_not_come_from_clients():
    with traced() as exporter:
        for path in ("/one", "/two", "/b"):
            CLIENT.post(path)
        CLIENT.get("/generate")
    assert [span.name for span in exporter.get_finished_spans()] == ["POST", "POST", "POST /b"]
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [True, True, False]


def test_the_standard_variables_send_spans_to_a_receiver(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        tracing.configure()
        try:
            CLIENT.post("/generate", headers=TRACEPARENT)
        finally:
            tracing.use(None)
    assert receiver.resource.items() >= {"service.name": "flexiffusion-serve", "deployment.environment.name": "test"}.items()
    names = {span.name for span in receiver.spans}
    assert names == {"POST /generate", "image", "queue", "encode", "full", "partial", "decode", "file"}


@pytest.mark.parametrize("variables", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}])
def test_tracing_stays_off(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.configure()
    assert tracing.image_trace() is tracing.NO_TRACE
    assert CLIENT.post("/generate").status_code == 200


def test_another_protocol_stops_the_start(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InvalidInput, match="only http/protobuf, got 'grpc'"):
        tracing.configure()
