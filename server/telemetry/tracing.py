"""OpenTelemetry spans: one per request, one per image in it, and below that one for each thing that happened to the image.

Off unless the standard OTEL_* variables name a receiver. Then an image outside a sampled request costs the engine's thread
a call that does nothing, and one inside it a tuple per wave: spans are made of them when the image leaves. Prompts are
in none of them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from time import monotonic_ns, time_ns
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from registry.errors import InvalidInput
from server import VERSION
from server.telemetry import served

NAME = "flexiffusion-serve"
RECEIVERS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_provider: TracerProvider | None = None
_tracer: Tracer | None = None  # while nobody wants spans


def use(provider: TracerProvider | None) -> None:
    """Make spans for this provider from now on; for none, make none. What the one before holds back is sent."""
    global _provider, _tracer
    if _provider:
        _provider.shutdown()
    _provider, _tracer = provider, provider.get_tracer(NAME, VERSION) if provider else None


def configure() -> None:
    """Send spans to the OTLP/HTTP receiver that the environment names, if it does; everything else is the SDK's own OTEL_*.

    Raises `InvalidInput` when the exporter is not installed or another protocol is asked for.
    """
    wanted = next((name for name in RECEIVERS if os.environ.get(name)), None)
    if wanted is None or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise InvalidInput(f"OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf, got {protocol!r}", param=wanted)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        message = "opentelemetry-exporter-otlp-proto-http is not installed (extra `tracing`)"
        raise InvalidInput(message, param=wanted) from None
    ours = Resource.create({SERVICE_NAME: NAME, SERVICE_VERSION: VERSION})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def span(name: str) -> AbstractContextManager[Span | None]:
    """What runs inside is a span of the current request."""
    return _tracer.start_as_current_span(name) if _tracer else nullcontext()


class ImageTrace:
    """What happens to one image, noted by the engine's thread and exported as spans when the image leaves."""

    def __init__(self, tracer: Tracer, request: Context) -> None:
        self._tracer, self._request = tracer, request
        self._epoch = time_ns() - monotonic_ns()  # of the monotonic clock
        self._parts: list[tuple[str, float, float, dict[str, Any]]] = []

    def add(self, name: str, start: float, end: float, **attributes: Any) -> None:
        """One part of it; times are of the monotonic clock, in seconds."""
        self._parts.append((name, start, end, attributes))

    def end(self, now: float, **attributes: Any) -> None:
        """The image leaves: a span for it below the request's, and one for each part below that."""
        if model := served.model():
            attributes["model"] = model
        start = min((start for _, start, _, _ in self._parts), default=now)
        image = self._tracer.start_span("image", self._request, attributes=attributes, start_time=self._ns(start))
        inside = trace.set_span_in_context(image, self._request)
        for name, begun, over, about in self._parts:
            part = self._tracer.start_span(name, inside, attributes=about, start_time=self._ns(begun))
            part.end(self._ns(over))
        image.end(self._ns(now))

    def _ns(self, seconds: float) -> int:
        return self._epoch + round(seconds * 1e9)


class NoTrace(ImageTrace):
    """The trace of an image that nobody wants to see: it notes nothing."""

    def __init__(self) -> None:
        """Needs no tracer."""

    @override
    def add(self, name: str, start: float, end: float, **attributes: Any) -> None:
        pass

    @override
    def end(self, now: float, **attributes: Any) -> None:
        pass


NO_TRACE = NoTrace()


def image_trace() -> ImageTrace:
    """For an image of the request whose span is current: to be called where the request is, not in the engine's thread."""
    if _tracer is None or not trace.get_current_span().is_recording():
        return NO_TRACE
    return ImageTrace(_tracer, get_current())


class TracingMiddleware:
    """ASGI layer around the edge: a span for each POST, child of the caller's where a `traceparent` header says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if _tracer is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        caller, about = propagate.extract(Headers(scope=scope)), {"http.request.method": "POST", "url.path": scope["path"]}
        with _tracer.start_as_current_span("POST", caller, SpanKind.SERVER, about) as request:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(request, scope["path"], message)
                await send(message)

            await self._app(scope, receive, noting)


def _describe(request: Span, path: str, start: Message) -> None:
    status, headers = start["status"], Headers(raw=start["headers"])
    request.set_attributes({"http.response.status_code": status, "flexi.request_id": headers.get("x-request-id", "")})
    if status not in (404, 405):  # only paths that exist: names of spans have a bounded set of values
        request.update_name(f"POST {path}")
    if status >= 500:
        request.set_status(Status(StatusCode.ERROR))
