"""The routes below /v1, behind the edge, with an engine that a test plays: streams, units, OpenAI's parameters."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import httpx
import pytest
import torch
from PIL import Image
from server_model import small_model
from typing_extensions import override

from registry.errors import StoreUnavailable
from server.access.quota import Quotas
from server.batching.image_task import ImageResult
from server.errors import GenerationFailed
from server.experiments.active import ActiveExperiments
from server.http import openai, v1
from server.http.drain import Drain
from server.http.edge import Edge
from server.requests.generation import Generation, RequestObserver
from server.requests.planner import Planner
from server.telemetry import metrics
from server.tiers.active import LOOKUPS, WAITING, ActiveSchedules

IMAGE = ImageResult(torch.full((8, 8, 3), 128, dtype=torch.uint8), 10, Counter(full=4), 0.0, 0.5)


class Settings:
    max_images, request_seconds, default_tier, default_guidance = 4, 60.0, "reference", 3.0
    file_seconds, public_url = 0, None


class Engine:
    """Ends the images of a request in their order as `outcomes` say: an image, an error, or not at all."""

    def __init__(self):
        self.outcomes = [IMAGE] * 4

    def submit(self, specs, preview=None, progress=None):
        futures = [Future() for _ in specs]
        for future, outcome in zip(futures, self.outcomes, strict=False):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            elif outcome:
                future.set_result(outcome)
        return futures


class ObserverLog(RequestObserver, list):
    """(unit, how it ended) of each request."""

    @override
    def ended(self, context, plan, seconds):
        self.append((context.request.unit, context.code))


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def observer():
    return ObserverLog()


@pytest.fixture
def app(tiny, engine, observer, monkeypatch):
    """What the application finds. Its registry hangs until the test is over."""
    model, over = small_model(tiny), threading.Event()

    def open_catalog():
        over.wait(60)
        raise StoreUnavailable("the test is over")

    schedules = ActiveSchedules(open_catalog, model, 4)
    planner = Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.25, Settings())
    generation = Generation(planner, engine, Quotas(), [observer])
    names = ["tiny", "dall-e-3", "gpt-image-1"]
    made = SimpleNamespace(generation=generation, schedules=schedules, model_names=names, size="8x8", settings=Settings)
    made.queue_seconds = "0.250"
    made.names, made.counted_as, made.served = names, "", lambda _: made
    monkeypatch.setattr(v1.routes.state, "app", made, raising=False)
    yield made
    over.set()


def client():
    transport = httpx.ASGITransport(Edge(v1.routes, Drain()))
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)


def post(headers=None, **body):
    async def go():
        async with client() as http:
            return await http.post("/v1/images/generations", json={"prompt": "x"} | body, headers=headers)

    return asyncio.run(go())


def line(caplog):
    (fields,) = [record.fields for record in caplog.records if record.getMessage() == "request"]
    return fields


def ended(outcome):
    return sum(
        sample.value
        for sample in metrics.request_seconds.collect()[0].samples
        if sample.name.endswith("_count") and sample.labels["outcome"] == outcome
    )


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level("INFO", logger="server")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stream_has_the_log_line_of_any_other_request(app, caplog, stream):
    reply = post(stream=stream, n=2, tier="reference")
    said = line(caplog)
    assert reply.status_code == said["status"] == 200
    assert (said["asked"], said["tier"], said["images"], said["macs"]) == ("reference", "reference", 2, 20)
    assert said["schedule"] == app.schedules.tier("reference").digest
    assert "code" not in said


def test_a_stream_that_fails_after_its_first_event_counts_as_failed(app, engine, observer, caplog):
    engine.outcomes, before = [IMAGE, GenerationFailed("no")], ended("error")
    reply = post(stream=True, n=2)
    assert reply.status_code == 200, "it was sent before"
    assert json.loads(reply.text.strip().rpartition("data: ")[2])["error"]["code"] == "generation_failed"
    assert (line(caplog)["code"], line(caplog)["images"]) == ("generation_failed", 1)
    assert ended("error") == before + 1
    assert observer == [(None, "generation_failed")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_no_client_that_left(app, engine, observer, caplog, stream):
    engine.outcomes, before = [None], ended("deadline")
    reply = post(stream=stream, deadline_ms=30, tier="reference")
    assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")
    assert ended("deadline") == before + 1
    assert observer == [(None, "deadline_exceeded")]
    assert (line(caplog)["code"], line(caplog)["tier"]) == ("deadline_exceeded", "reference")


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_line_of_a_refusal_says_what_was_asked_for(app, caplog, stream):
    assert post(stream=stream, tier="nope").status_code == 404
    assert (line(caplog)["code"], line(caplog)["asked"]) == ("not_found", "nope")


@pytest.mark.parametrize("stream", [False, True])
def test_a_registry_that_hangs_keeps_neither_deadlines_nor_others_waiting(app, stream):
    path = "/v1/images/generations"

    def asking(http, schedule, deadline_ms):
        body = {"prompt": "x", "schedule": schedule, "deadline_ms": deadline_ms, "stream": stream}
        return http.post(path, json=body)

    async def go():
        async with client() as http:
            waiting = [asyncio.create_task(asking(http, str(number), 2000)) for number in range(LOOKUPS + WAITING)]
            while app.schedules._waiting < WAITING:
                await asyncio.sleep(0.01)
            refused = await asking(http, "99", 2000)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) > 0
            assert (await http.get("/v1/schedules/99")).status_code == 503
            digest = app.schedules.tier("reference").digest
            assert (await asking(http, digest, 60_000)).status_code == 200
            assert (await http.post(path, json={"prompt": "x", "tier": "reference"})).status_code == 200
            assert not any(task.done() for task in waiting)
            assert {reply.status_code for reply in await asyncio.gather(*waiting)} == {504}

    asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize(
    ("body", "header", "unit"),
    [
        ({}, None, None),
        ({}, "carol", "carol"),
        ({"user": "anna"}, "carol", "anna"),
        ({"safety_identifier": "bob"}, "carol", "bob"),
        ({"safety_identifier": "bob", "user": "anna"}, None, "bob"),
        ({"safety_identifier": "", "user": "anna"}, None, "anna"),
        ({"safety_identifier": ""}, "carol", "carol"),
        ({"safety_identifier": None}, None, None),
        ({"safety_identifier": None, "user": ""}, "", None),
        ({"user": "anna"}, "", "anna"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_unit(app, observer, stream, body, header, unit):
    reply = post({"X-Flexi-Unit": header} if header is not None else None, stream=stream, **body)
    assert (reply.status_code, observer) == (200, [(unit, "ok")])


@pytest.mark.parametrize("header", ["x" * 129, "Zoë".encode(), "a\tb"])
def test_a_unit_outside_its_limits(app, observer, header):
    reply = post({"X-Flexi-Unit": header}, user="anna")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], observer) == (400, "X-Flexi-Unit", [])
    assert "128" in error["message"]


@pytest.mark.parametrize(("quality", "stream"), [("low", False), ("standard", True)])
def test_a_quality_whose_tier_there_is_not_is_refused_by_its_own_name(app, quality, stream):
    reply = post(quality=quality, stream=stream)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "not_found", "quality")
    assert error["message"].startswith(f"quality: {quality} means the tier {openai.TIERS[quality]}, which is not here")
    for fields in ({"quality": "max"}, {"quality": "auto"}, {"quality": "auto", "tier": "reference"}):
        assert post(**fields).status_code == 200


@pytest.mark.parametrize("name", ["complexity", "frame_count", "frame_duration_ms", "style", "svg"])
def test_what_other_models_of_openai_take(app, name):
    assert post(**{name: None}).status_code == 200
    error = post(**{name: 1}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_input", name)
    assert "not a field here: " in error["message"]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, "b64_json"),
        ({"model": "tiny"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": ""}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "tiny", "response_format": "url"}, "url"),
    ],
)
def test_images_come_as_the_model_of_that_name_sends_them_unless_a_format_is_named(app, fields, key):
    for image in post(n=2, **fields).json()["data"]:
        assert list(image) == [key]
        assert base64.b64decode(image[key].removeprefix("data:image/png;base64,"))[1:4] == b"PNG"


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_answers_and_events_say_the_format_of_their_files(app, name):
    wanted = {"output_format": name, "output_compression": 100, "seed": 1}
    whole, urls = post(**wanted).json(), post(response_format="url", **wanted).json()
    assert (whole["output_format"], urls["output_format"]) == (name, name)
    kind, data = urls["data"][0]["url"].split(",")
    assert (kind, data) == (f"data:image/{name};base64", whole["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == name.upper()
    (event,) = [json.loads(line[6:]) for line in post(stream=True, **wanted).text.splitlines() if line.startswith("data: ")]
    assert (event["output_format"], event["request"]["output_format"], event["b64_json"]) == (name, name, data)


class Files:
    """Keeps what it is given, or raises `fault`: at once where `early`, else when the images are made."""

    def __init__(self, fault=None, early=False):
        self.fault, self.early, self.kept = fault, early, []

    async def check(self):
        if self.fault and self.early:
            raise self.fault

    async def keep(self, data, output_format, until):
        if self.fault:
            raise self.fault
        self.kept.append(data)
        return f"{until:08x}{len(self.kept):032x}.{output_format}"


AWAY = StoreUnavailable("cannot write: away", param="registry")


@pytest.mark.parametrize("public", [None, "https://images.example.com/flexi"])
def test_urls_are_of_kept_files_at_the_address_that_clients_know(app, monkeypatch, public):
    app.files, kept = (files := Files()), {"file_seconds": 60, "public_url": public}
    monkeypatch.setattr(app, "settings", SimpleNamespace(max_images=4, **kept))
    answer = post(response_format="url", n=2).json()
    assert [data["url"].rpartition("/v1/images/files/")[0] for data in answer["data"]] == [public or "http://test"] * 2
    assert all(data[1:4] == b"PNG" for data in files.kept)
    assert len(files.kept) == 2
    assert (answer["warnings"], answer["expires_at"]) == ([], int(answer["data"][0]["url"].rpartition("/")[2][:8], 16))


def test_while_no_file_can_be_kept_urls_are_refused_before_anything_is_spent(app, engine, observer, monkeypatch):
    app.files = Files(AWAY, early=True)
    monkeypatch.setattr(app, "settings", SimpleNamespace(max_images=4, file_seconds=60, public_url=None))
    reply = post(response_format="url")
    assert (reply.status_code, reply.json()["error"]["param"], observer) == (503, "response_format", [])
    assert "b64_json" in reply.json()["error"]["message"]
    assert post().status_code == 200, "whoever wants no URL is not concerned"


def test_images_that_are_made_are_answered_whatever_becomes_of_the_store(app, monkeypatch):
    app.files = Files(AWAY)
    monkeypatch.setattr(app, "settings", SimpleNamespace(max_images=4, file_seconds=60, public_url=None))
    answer = post(response_format="url", tier="reference").json()
    assert answer["data"][0]["url"].startswith("data:image/png;base64,")
    assert [warning["code"] for warning in answer["warnings"]] == ["file_not_kept"]


def test_a_stream_has_no_urls(app):
    assert post(stream=True, model="dall-e-3").status_code == 200
    error = post(stream=True, response_format="url").json()["error"]
    assert (error["param"], error["message"]) == ("response_format", "response_format: the events of a stream hold b64_json")


def test_the_refusal_of_another_name_says_how_it_could_be_allowed(app):
    error = post(model="sdxl").json()["error"]
    assert (error["param"], "FLEXI_MODEL_ALIASES" in error["message"]) == ("model", True)
