"""The probes, behind the edge: what they say in each state of a worker, to GET and to HEAD."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from server_model import small_model
from starlette.applications import Starlette
from starlette.testclient import TestClient

from server.api import RequestWarning
from server.http import v1
from server.http.drain import Drain
from server.http.edge import Edge
from server.http.opening import Opening
from server.http.probes import OwnProbes
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules


class Server:
    """A worker that is loading."""

    def __init__(self, monkeypatch):
        self.drain, self.opening = Drain(), Opening()
        self.set = lambda name, value: monkeypatch.setattr(v1.routes.state, name, value, raising=False)
        self.set("drain", self.drain)
        self.set("opening", self.opening)
        monkeypatch.delattr(v1.routes.state, "app", raising=False)
        theirs = Starlette()
        theirs.mount("/", v1.routes)
        self.client = TestClient(Edge(OwnProbes(theirs, v1.routes), self.drain))

    def open(self, model):
        schedules = ActiveSchedules(lambda: None, model, teacher_steps=4)
        engine = SimpleNamespace(alive=True)
        app = SimpleNamespace(
            model=model, schedules=schedules, device_thread=engine, default_tier="reference", warnings=[WARNING], loras=None
        )
        app.settings = SimpleNamespace(max_images=4, default_guidance=3.0, default_tier="reference")
        planner = Planner(schedules, None, model, lambda *_: 0.5, app.settings)
        app.generation, app.examples = SimpleNamespace(planner=planner), ["a cat"]
        app.served = lambda _: app
        self.set("app", app)
        return app

    def said(self, path):
        """Status, and the error's code and message or the body."""
        answer = self.client.get(path)
        body = answer.json()
        assert answer.headers["x-request-id"]
        if answer.status_code == 200:
            return 200, body
        assert set(body["error"]) == {"code", "message", "param", "request_id"}
        assert int(answer.headers["retry-after"]) > 0
        return answer.status_code, body["error"]["code"], body["error"]["message"]


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


WARNING = RequestWarning(code="no_tiers", message="none")
LIVE = (200, {"alive": True})


def test_a_worker_that_loads_is_alive_and_says_what_it_does(server):
    assert server.said("/readyz") == (503, "not_ready", "the model is loading (0 s)")
    assert server.said("/v1/tiers") == server.said("/readyz")
    assert server.said("/livez") == server.said("/healthz") == LIVE
    server.opening.waits("the registry could not be read: no answer")
    assert server.said("/readyz") == (503, "not_ready", "the registry could not be read: no answer (0 s)")
    assert server.said("/livez") == LIVE


def test_a_worker_that_failed_says_why_and_wants_to_be_restarted(server):
    server.opening.fails("the weights are gone")
    refusal = (503, "not_ready", "the server cannot start: the weights are gone")
    assert [server.said(path) for path in ("/readyz", "/livez", "/healthz", "/v1/tiers")] == [refusal] * 4


def test_a_worker_that_is_open_says_what_it_serves(server, tiny):
    server.open(small_model(tiny))
    status, body = server.said("/readyz")
    said = {"ready": True, "model": "tiny", "default": "reference", "tiers": ["reference"]}
    assert (status, body) == (200, said | {"warnings": [{"code": "no_tiers", "message": "none"}]})
    assert server.said("/livez") == LIVE


def test_a_worker_that_lost_its_engine_is_neither_ready_nor_alive(server, tiny):
    server.open(small_model(tiny)).device_thread.alive = False
    for path in ("/readyz", "/livez", "/healthz"):
        status, code, message = server.said(path)
        assert (status, code) == (503, "not_ready")
        assert message.startswith("the engine is lost")


def test_a_worker_that_stops_is_alive_and_not_ready(server, tiny):
    server.open(small_model(tiny))
    server.drain.stopping = True
    assert server.said("/readyz") == (503, "stopping", "the server is stopping")
    assert server.said("/livez") == LIVE


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/healthz"])
def test_head_says_the_same_without_a_body_and_post_is_no_probe(server, tiny, path):
    for prepare in (lambda: None, lambda: server.open(small_model(tiny)), lambda: server.opening.fails("no")):
        prepare()
        get, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, "application/json")
    assert server.client.post(path).status_code == 405


def test_tiers_that_are_not_served_are_listed_with_their_reasons(server, tiny):
    app = server.open(small_model(tiny))
    app.schedules.put({}, {"fast": "of other weights", "best": "damaged"})
    status, body = server.said("/v1/tiers")
    assert (status, body["default"], [tier["tier"] for tier in body["tiers"]]) == (200, "reference", ["reference"])
    assert body["not_served"] == [{"tier": "best", "reason": "damaged"}, {"tier": "fast", "reason": "of other weights"}]
    assert body["warnings"] == [{"code": "no_tiers", "message": "none"}]


def test_tiers_say_what_an_image_costs_and_what_the_model_draws(server, tiny):
    app = server.open(small_model(tiny))
    _, body = server.said("/v1/tiers")
    (reference,) = body["tiers"]
    assert reference["macs"] == app.model.macs.of_program(app.schedules.tier("reference").program, 2)
    assert (reference["predicted_ms"], body["prompt_kind"], body["guides"]) == (500.0, "text", True)
    assert (body["examples"], body["classes"], body["max_images"]) == (["a cat"], [], 4)
