"""Everything around generation: errors of one shape, request ids, pages, documents, logs."""

from __future__ import annotations

import json
import re
import socket

import pytest
from served import ALIASES, ORIGIN, OTHER_SIZE

JSON = {"content-type": "application/json"}
GENERATES = ["/generate", "/v1/images/generations"]
GOOD = {"prompt": "red heart", "tier": "draft", "seed": 1}

BAD_BODIES = [
    ({}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": "x" * 4001}, 400, "prompt"),
    ({"prompt": 7}, 400, "prompt"),
    ({**GOOD, "negative_prompt": "x" * 4001}, 400, "negative_prompt"),
    ({**GOOD, "seed": -2}, 400, "seed"),
    ({**GOOD, "seed": 2**63}, 400, "seed"),
    ({**GOOD, "seed": 2**63 - 63}, 400, "seed"),
    ({**GOOD, "seed": "7"}, 400, "seed"),
    ({**GOOD, "num_images": 0}, 400, "num_images"),
    ({**GOOD, "num_images": 5}, 400, "num_images"),
    ({**GOOD, "guidance_scale": -0.1}, 400, "guidance_scale"),
    ({**GOOD, "guidance_scale": 30.1}, 400, "guidance_scale"),
    ({**GOOD, "deadline_ms": 0}, 400, "deadline_ms"),
    ({**GOOD, "schedule": "12345678"}, 400, "schedule"),
    ({"prompt": "x", "schedule": "balanced"}, 400, "schedule"),
    ({"prompt": "x", "schedule": "12345678"}, 404, "schedule"),
    ({"prompt": "x", "schedule": "999"}, 404, "schedule"),
    ({"prompt": "x", "tier": "nope"}, 404, "tier"),
    ({**GOOD, "steps": 3}, 400, "steps"),
    ([GOOD], 400, "body"),
]


def error_of(reply, status, param):
    """The error object, after checking the shape."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["param"] == param
    assert error["message"]
    assert error["request_id"] == reply.headers["x-request-id"]
    return error


@pytest.mark.parametrize(("body", "status", "param"), BAD_BODIES, ids=lambda value: str(value)[:60])
def test_bad_requests(client, body, status, param):
    error = error_of(client.post("/generate", json=body), status, param)
    assert error["code"] == {400: "invalid_input", 404: "not_found"}[status]


@pytest.mark.parametrize("path", GENERATES)
@pytest.mark.parametrize(
    "body", ["{bad", '{"prompt": NaN}', '{"prompt": "\ud800"}', '{"prompt": "\\ud800"}', "[" * 30000, "\x00"]
)
def test_malformed_json(client, path, body):
    reply = client.post(path, content=body.encode("utf-8", "surrogatepass"), headers=JSON)
    assert error_of(reply, 400, "body")["code"] == "invalid_json"


@pytest.mark.parametrize("path", GENERATES)
@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"prompt": "x", "guidance_scale": 1e400}', "guidance_scale"),
        ('{"prompt": "x", "deadline_ms": 1' + "0" * 400 + "}", "deadline_ms"),
        ('{"prompt": "x", "tier": "auto", "schedule": "12345678"}', "schedule"),
        ('{"prompt": null}', "prompt"),
        ("[]", "body"),
        ("null", "body"),
        ('{"body": {"prompt": "x"}}', "body"),  # a field that is called so
    ],
)
def test_values_at_the_edge_of_json(client, path, text, param):
    error = error_of(client.post(path, content=text, headers=JSON), 400, param)
    assert error["code"] == "invalid_input"


@pytest.mark.parametrize("path", GENERATES)
def test_of_a_name_that_comes_twice_the_last_value_counts(client, path):
    reply = client.post(path, content='{"prompt": "x", "tier": "nope", "tier": "draft"}', headers=JSON)
    assert (reply.status_code, reply.json()["tier"]) == (200, "draft")


@pytest.mark.parametrize("path", GENERATES)
@pytest.mark.parametrize("headers", [{"content-type": "multipart/form-data"}, {"content-type": "text/plain"}, {}], ids=str)
def test_other_content_types(client, path, headers):
    reply = client.post(path, content=json.dumps(GOOD), headers=headers)
    assert error_of(reply, 415, "Content-Type")["code"] == "unsupported_media_type"


def test_a_body_past_the_limit(client):
    reply = client.post("/v1/images/generations", json={"prompt": "x" * 200_000})
    assert error_of(reply, 413, "body")["code"] == "body_too_large"


@pytest.mark.parametrize("path", GENERATES)
def test_a_unit_in_a_header(client, path):
    body = {"prompt": "red heart", "tier": "draft"}
    assert client.post(path, json=body, headers={"X-Flexi-Unit": "anna"}).status_code == 200
    error_of(client.post(path, json=body, headers={"X-Flexi-Unit": "x" * 129}), 400, "X-Flexi-Unit")


def test_head_works_wherever_get_does(client):
    paths = [path for path, operations in client.get("/docs.json").json()["paths"].items() if "get" in operations]
    assert len(paths) > 10
    asked = [path.format(ref="1", model="emoji64", tier="best", name="nobody") for path in paths if "_id}" not in path]
    answered = set()
    for path in asked:  # of jobs, files, experiments and candidates there is none
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers["content-type"] == get.headers["content-type"], path
        answered |= {path} if head.status_code == 200 else set()
    missing = {"schedules/1/difference", "experiments/nobody/report", "tiers/best/shadow"}
    assert set(asked) - answered <= {f"/v1/operator/{path}" for path in missing}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/generate", {"POST"}),
        ("OPTIONS", "/generate", {"POST"}),
        ("GET", "/v1/images/generations", {"POST"}),
        ("POST", "/v1/tiers", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/models/emoji64", {"GET", "HEAD"}),
        ("PUT", "/metrics", {"GET", "HEAD"}),
        ("POST", "/schema.json", {"GET", "HEAD"}),
        ("GET", "/v1/requests/mine", {"DELETE"}),
    ],
)
def test_another_method_is_answered_with_those_that_there_are(client, method, path, allowed):
    reply = client.request(method, path)
    assert (reply.status_code, set(reply.headers["allow"].split(", "))) == (405, allowed)


@pytest.mark.parametrize("path", [*GENERATES, "/v1/models", "/schema.json", "/metrics", "/livez", "/nope"])
def test_pages_of_an_allowed_origin_may_ask(client, path):
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    reply = client.options(path, headers=asking)
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = client.post(path, json={}, headers={"Origin": ORIGIN})
    assert (refused.is_error, refused.headers["access-control-allow-origin"]) == (True, ORIGIN)


@pytest.mark.parametrize("path", GENERATES)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_shuts_its_writing_side_down_gets_its_answer(server, path, version):
    body = json.dumps({"prompt": "red heart", "tier": "reference"})
    head = f"POST {path} HTTP/{version}\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["tier"] == "reference"


def test_the_first_page_is_the_playground_and_leads_to_the_document(client):
    """What it loads is in tests/unit/server/http/pages, what it does in test_playground.py."""
    reply = client.get("/")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    (address,) = re.findall(r'href="([^"]+)">API document', reply.text)
    assert client.get(f"/{address}").json()["openapi"].startswith("3.1")


def test_deadline(client):
    reply = client.post("/generate", json={**GOOD, "tier": "reference", "deadline_ms": 1})
    assert error_of(reply, 504, "deadline_ms")["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status", "param"),
    [
        ("GET", "/nope", 404, None),
        ("GET", "/generate", 405, None),
        ("POST", "/v1/tiers", 405, None),
        ("GET", "/v1/schedules/12345678", 404, "schedule"),
        ("GET", "/v1/schedules/balanced", 400, "ref"),
    ],
)
def test_errors_of_other_routes(client, method, path, status, param):
    error_of(client.request(method, path), status, param)


def test_request_id_is_kept_or_made(client):
    assert client.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.get("/livez", headers={"X-Request-Id": "not acceptable!"}).headers["x-request-id"]
    assert len(made) == 32


def test_probes(client):
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_tiers(server, client):
    page = client.get("/v1/tiers").json()
    assert (page["model"], page["default"]) == ("emoji64", "balanced")
    by_name = {tier["tier"]: tier for tier in page["tiers"]}
    assert {*server.schedules, "reference"} <= set(by_name)
    for name, schedule in server.schedules.items():
        assert (by_name[name]["digest"], by_name[name]["steps"]) == (schedule.digest, schedule.counts())
    costs = [tier["relative_cost"] for tier in page["tiers"]]
    assert costs == sorted(costs)
    dearest = page["tiers"][-1]
    for tier in page["tiers"]:
        assert tier["macs"] / dearest["macs"] == pytest.approx(tier["relative_cost"])
        assert tier["predicted_ms"] > 0
    assert (page["max_images"], page["prompt_kind"], page["classes"], page["guides"]) == (4, "text", [], True)
    assert "tiger face" in page["examples"]


def test_schedule_page(server, client):
    schedule = server.schedules["best"]
    page = client.get(f"/v1/schedules/{schedule.digest}").json()
    assert page["digest"] == schedule.digest
    assert type(schedule).model_validate(page["schedule"]) == schedule


def test_openapi_declares_every_route_and_its_answers(client):
    """That they are true is for test_fuzz.py to find out."""
    document = client.get("/docs.json").json()
    answers = {
        (method, path): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    images = {"200", "400", "403", "404", "408", "409", "413", "415", "429", "500", "503", "504"}
    assert answers["post", "/generate"] == answers["post", "/v1/images/generations"] == images
    assert answers["delete", "/v1/requests/{request_id}"] == {"200", "400", "404", "500", "503"}
    assert answers["post", "/v1/feedback"] == {"202", "400", "408", "413", "415", "500", "503"}
    assert answers["get", "/readyz"] == {"200", "503"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                assert "X-Request-Id" in response["headers"]
                assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))
                if status >= "400":
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorView"), path


def test_openapi_says_what_holds_for_this_server(client):
    document = client.get("/docs.json").json()
    schemas = document["components"]["schemas"]
    asked, openai = schemas["Generate"]["properties"], schemas["ImagesRequest"]["properties"]
    assert (asked["prompt"]["maxLength"], asked["num_images"]["anyOf"][0]["maximum"]) == (4000, 4)
    assert asked["seed"]["anyOf"][0]["maximum"] == 2**63 - 64
    assert openai["n"]["anyOf"][0]["maximum"] == 4
    assert openai["model"]["anyOf"][0]["enum"] == ["emoji64", *ALIASES]
    assert openai["size"]["anyOf"][0]["enum"] == asked["size"]["anyOf"][0]["enum"] == ["auto", "64x64", OTHER_SIZE]
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    form = schemas[content["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]]["properties"]
    assert (form["image"]["format"], form["n"]["maximum"], form["size"]["enum"]) == (
        "binary",
        4,
        openai["size"]["anyOf"][0]["enum"],
    )
    for path in GENERATES:
        (header,) = document["paths"][path]["post"]["parameters"]
        assert (header["in"], header["name"]) == ("header", "X-Flexi-Unit")
    streamed = document["paths"]["/v1/images/generations"]["post"]["responses"]["200"]["content"]
    assert set(streamed) == {"application/json", "text/event-stream"}


def test_the_start_is_told_by_part(server, client):
    page = client.get("/metrics").text
    told = {part: float(value) for part, value in re.findall(r'^flexi_start_seconds{part="(\w+)"} (.+)$', page, re.MULTILINE)}
    assert told.keys() == {"import", "load", "registry", "warm_up", "ready"}
    assert all(seconds > 0 for seconds in told.values())
    assert sum(seconds for part, seconds in told.items() if part != "ready") <= told["ready"]
    (line,) = [line for line in server.log.read_text().splitlines() if '"event": "ready"' in line]
    assert json.loads(line)["seconds"] == {part: pytest.approx(seconds, abs=0.01) for part, seconds in told.items()}


def test_one_log_line_per_request_without_the_prompt(server, client):
    secret = "a prompt that nobody else sends"
    good = client.post("/generate", json={"prompt": secret, "tier": "draft"})
    bad = client.post("/generate", json={"prompt": secret, "seed": secret, secret: secret})
    for reply, asked, code in ((good, "draft", None), (bad, None, "invalid_input")):
        (line,) = server.requests(reply.headers["x-request-id"])
        assert (line["event"], line["path"], line["status"]) == ("request", "/generate", reply.status_code)
        assert (line.get("asked"), line.get("code")) == (asked, code)
    assert secret not in server.log.read_text()
