"""The edge: every error in one shape, whoever made it; request ids; bodies within the limit."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from registry.errors import NotFound, Overloaded
from server.access.key_file import KeyEntry, KeyFile, sha256
from server.access.keys import Keys
from server.errors import problem
from server.http.body import MAX_BYTES
from server.http.drain import Drain
from server.http.edge import Edge, shaped

ORIGIN = "http://localhost:5173"
ASKING = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


async def echo(request):
    context = request.state.context
    return JSONResponse({"length": len(await request.body()), "id": context.request_id, "key": context.key.name})


async def known(_):
    return problem(NotFound("there is no such thing", param="thing"))


async def busy(_):
    return problem(Overloaded("full", retry_after=2.2))


async def broken(_):
    raise RuntimeError("secret detail")


async def down(_):
    raise HTTPException(503, "theirs")


async def fine(_):
    return PlainTextResponse("fine", headers={"X-Own": "1"})


def application():
    paths = {"/known": known, "/busy": busy, "/broken": broken, "/down": down, "/fine": fine, "/livez": fine}
    routes = [Route("/echo", echo, methods=["POST"]), *(Route(path, handler) for path, handler in paths.items())]
    return Starlette(routes=routes)


@pytest.fixture
def client():
    return TestClient(Edge(application(), Drain()), raise_server_exceptions=False)


@pytest.fixture
def locked(tmp_path):
    """A client of a server with two keys, which pages of one origin may use."""
    entries = tuple(KeyEntry(name=name, sha256=sha256(token)) for name, token in (("shop", "s3cret"), ("lab", "s4cret")))
    (tmp_path / "keys.json").write_text(KeyFile(keys=entries).model_dump_json())
    return TestClient(Edge(application(), Drain(), Keys(tmp_path / "keys.json"), [ORIGIN]), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "status", "code", "param"),
    [
        ("/known", 404, "not_found", "thing"),
        ("/busy", 429, "overloaded", None),
        ("/broken", 500, "internal_error", None),
        ("/down", 503, "not_ready", None),
        ("/nowhere", 404, "not_found", None),
        ("/echo", 405, "method_not_allowed", None),
    ],
)
def test_one_shape(client, path, status, code, param):
    reply = client.get(path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["request_id"] == reply.headers["x-request-id"]
    assert "secret" not in reply.text
    assert ("retry-after" in reply.headers) == (status in (429, 503))


def test_retry_after_is_whole_seconds_rounded_up(client):
    assert client.get("/busy").headers["retry-after"] == "3"


def test_good_answers_pass_unchanged(client):
    reply = client.get("/fine", headers={"X-Request-Id": "abc"})
    assert (reply.text, reply.headers["x-own"], reply.headers["x-request-id"]) == ("fine", "1", "abc")


def test_the_application_reads_the_body_again(client):
    assert client.post("/echo", json="x" * 100, headers={"X-Request-Id": "abc"}).json() == {
        "length": 102,
        "id": "abc",
        "key": "anonymous",
    }


def test_chunked_bodies_have_the_same_limit(client):
    chunks = (b"x" * 1024 for _ in range(MAX_BYTES // 1024 + 1))
    reply = client.post("/echo", content=chunks, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("kind", ["multipart/form-data", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle"])
def test_only_json_comes_in(client, kind):
    assert client.post("/echo", content=b"{}", headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize(
    ("fault", "code", "message", "param"),
    [
        ({"type": "missing", "loc": ["prompt"], "msg": "Field required"}, "invalid_input", "prompt: Field required", "prompt"),
        ({"type": "int_type", "loc": ["body"], "msg": "bad"}, "invalid_input", "body: bad", "body"),
        ({"type": "value_error", "loc": ["tier"], "msg": "no"}, "invalid_input", "tier: no", "tier"),
        ({"type": "json_invalid", "loc": [], "msg": "Invalid JSON: …"}, "invalid_json", "body: Invalid JSON: …", "body"),
        ({"type": "model_type", "loc": [], "msg": "not an object"}, "invalid_input", "body: not an object", "body"),
    ],
)
def test_validation_errors_name_the_field(fault, code, message, param):
    status, error = shaped(422, json.dumps({"error": "1 validation error", "detail": [fault]}).encode())
    assert (status, error) == (400, {"code": code, "message": message, "param": param})


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": "Bearer s3cret"}, "shop"),
        ({"Authorization": "bearer  s4cret"}, "lab"),
        ({"X-API-Key": "s4cret"}, "lab"),
        ({"Authorization": "Basic cHJveHk6", "X-API-Key": "s3cret"}, "shop"),
    ],
)
def test_a_key_says_who_asks(locked, headers, name):
    assert locked.post("/echo", json={}, headers=headers).json()["key"] == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer s3cre"},
        {"Authorization": "s3cret"},
        {"Authorization": "Bearer wrong", "X-API-Key": "s3cret"},
        {"Authorization": b"Bearer s3cret\xe9"},
        {"X-API-Key": sha256("s3cret")},
    ],
)
@pytest.mark.parametrize("path", ["/echo", "/fine", "/nowhere", "/livez/", "/docs.json"])
def test_nobody_gets_in_without_a_key(locked, headers, path):
    reply = locked.get(path, headers=headers)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    error = reply.json()["error"]
    assert (error["code"], error["request_id"]) == ("unauthorized", reply.headers["x-request-id"])
    assert "s3cret" not in reply.text


def test_an_unknown_client_cannot_make_the_server_read_its_body(locked):
    def chunks():
        yield b"x"
        raise AssertionError("the body was read")

    assert locked.post("/echo", content=chunks()).status_code == 401


def test_probes_need_no_key(locked):
    assert locked.get("/livez").status_code == 200


def test_a_kept_file_needs_no_key_and_its_name_is_in_no_log_line(locked, caplog):
    caplog.set_level("INFO", logger="server")
    secret = "f" * 40
    assert locked.get(f"/v1/images/files/{secret}.png").status_code == 404, "of the application, which has none here"
    assert locked.get(f"/v1/images/{secret}.png").status_code == 401
    assert locked.post(f"/v1/images/files/{secret}.png", json={}).status_code == 401
    said = [record.fields["path"] for record in caplog.records if record.getMessage() == "request"]
    assert said == ["/v1/images/files/", f"/v1/images/{secret}.png", "/v1/images/files/"]


def test_logs_have_the_name_and_not_the_key(locked, caplog):
    with caplog.at_level("INFO", logger="server"):
        locked.get("/fine", headers={"X-API-Key": "s3cret"})
        locked.get("/fine", headers={"X-API-Key": "s3cret-not"})
    lines = [record.fields for record in caplog.records]
    assert [(line["status"], line.get("key")) for line in lines] == [(200, "shop"), (401, None)]
    assert "s3cret" not in str(lines) + caplog.text


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_ours(caplog):
    messages = [{"type": "http.request", "body": b'{"a":', "more_body": True}, {"type": "http.disconnect"}]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/echo", "headers": headers}

    async def receive():
        return messages.pop(0)

    async def send(_):
        """Into the void."""

    with caplog.at_level("INFO", logger="server"):
        asyncio.run(Edge(application(), Drain())(scope, receive, send))
    (record,) = caplog.records
    assert (record.fields["status"], record.fields["code"], record.exc_info) == (499, "client_gone", None)


def test_the_log_line_has_the_code_of_an_error(client, caplog):
    with caplog.at_level("INFO", logger="server"):
        client.get("/known")
        client.get("/fine")
    assert [record.fields.get("code") for record in caplog.records] == ["not_found", None]


def test_a_preflight_needs_no_key(locked):
    wanted = "authorization, content-type, x-stainless-os"
    reply = locked.options("/echo", headers=ASKING | {"Access-Control-Request-Headers": wanted})
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert reply.headers["access-control-allow-headers"] == wanted
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["x-request-id"]


def test_a_page_may_read_every_answer_errors_too(locked):
    page = {"Origin": ORIGIN}
    replies = [
        locked.get(path, headers=page | {"X-API-Key": "s3cret"}) for path in ("/fine", "/known", "/busy", "/broken", "/no")
    ]
    replies += [locked.get("/fine", headers=page), locked.get("/livez", headers=page)]
    replies.append(
        locked.post("/echo", content="{", headers=page | {"X-API-Key": "s3cret", "Content-Type": "application/json"})
    )
    assert [reply.status_code for reply in replies] == [200, 404, 429, 500, 404, 401, 200, 400]
    for reply in replies:
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert {"X-Request-Id", "Retry-After"} <= set(reply.headers["access-control-expose-headers"].split(", "))
        assert "Origin" in reply.headers["vary"]
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:5174", "https://localhost:5173", "http://localhost:5173.evil.example", "null"]
)
def test_pages_of_other_origins_may_read_nothing(locked, origin):
    refused = locked.options("/echo", headers=ASKING | {"Origin": origin})
    plain = locked.get("/fine", headers={"Origin": origin, "X-API-Key": "s3cret"})
    assert (refused.status_code, refused.json()["error"]["param"], plain.status_code) == (400, "Origin", 200)
    assert "FLEXI_CORS_ORIGINS" in refused.json()["error"]["message"]
    for reply in (refused, plain):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_preflight_for_another_method_is_refused(locked):
    reply = locked.options("/echo", headers=ASKING | {"Access-Control-Request-Method": "PATCH"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "Access-Control-Request-Method")


def test_without_origins_no_page_may_ask(client):
    assert "FLEXI_CORS_ORIGINS" in client.options("/echo", headers=ASKING).json()["error"]["message"]
    assert not [name for name in client.get("/fine", headers={"Origin": ORIGIN}).headers if "access" in name or name == "vary"]


def test_what_is_no_preflight_is_an_ordinary_request(client, locked):
    assert client.options("/echo", headers={"Origin": ORIGIN}).status_code == 405
    assert locked.options("/echo").status_code == 401


def test_any_origin():
    anybody = TestClient(Edge(application(), Drain(), origins=["*"]))
    assert anybody.options("/echo", headers=ASKING).headers["access-control-allow-origin"] == "*"
    assert anybody.get("/fine", headers={"Origin": "https://a.example"}).headers["access-control-allow-origin"] == "*"


def test_head_is_answered_as_get_is(client):
    for path in ("/fine", "/known", "/livez"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert client.head("/echo").headers["allow"] == "POST"
