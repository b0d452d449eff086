"""Everything around generation: errors of one shape, request ids, pages, documents, logs."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

JSON = {"content-type": "application/json"}
GOOD = {"prompt": "red heart", "tier": "draft", "seed": 1}

BAD_BODIES = [
    ({}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": "x" * 1001}, 400, "prompt"),
    ({"prompt": 7}, 400, "prompt"),
    ({**GOOD, "negative_prompt": "x" * 1001}, 400, "negative_prompt"),
    ({**GOOD, "seed": -1}, 400, "seed"),
    ({**GOOD, "seed": 2**63}, 400, "seed"),
    ({**GOOD, "seed": 2**63 - 1, "num_images": 2}, 400, "seed"),
    ({**GOOD, "seed": "7"}, 400, "seed"),
    ({**GOOD, "num_images": 0}, 400, "num_images"),
    ({**GOOD, "num_images": 5}, 400, "num_images"),
    ({**GOOD, "guidance_scale": 0.9}, 400, "guidance_scale"),
    ({**GOOD, "guidance_scale": 21}, 400, "guidance_scale"),
    ({**GOOD, "deadline_ms": 0}, 400, "deadline_ms"),
    ({**GOOD, "unit": ""}, 400, "unit"),
    ({**GOOD, "schedule": "12345678"}, 400, "schedule"),
    ({"prompt": "x", "schedule": "balanced"}, 400, "schedule"),
    ({"prompt": "x", "schedule": "12345678"}, 404, "schedule"),
    ({"prompt": "x", "schedule": "999"}, 404, "schedule"),
    ({"prompt": "x", "tier": "nope"}, 404, "tier"),
    ({**GOOD, "steps": 3}, 400, "steps"),
    ([GOOD], 400, None),
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


@pytest.mark.parametrize("body", ["{bad", '{"prompt": NaN}', '{"prompt": "\ud800"}', "\x00"])
def test_malformed_json(client, body):
    reply = client.post("/generate", content=body.encode("utf-8", "surrogatepass"), headers=JSON)
    assert error_of(reply, 400, reply.json()["error"]["param"])["code"] in ("invalid_json", "invalid_input")


def test_other_content_types(client):
    reply = client.post("/generate", content=json.dumps(GOOD), headers={"content-type": "multipart/form-data"})
    assert error_of(reply, 415, "Content-Type")["code"] == "unsupported_media_type"


def test_a_body_past_the_limit(client):
    reply = client.post("/generate", json={"prompt": "x" * 100_000})
    assert error_of(reply, 413, "body")["code"] == "body_too_large"


def test_deadline(client):
    reply = client.post("/generate", json={**GOOD, "tier": "reference", "deadline_ms": 1})
    assert error_of(reply, 504, "deadline_ms")["code"] == "deadline_exceeded"


def test_a_full_queue_says_when_to_come_back(server, client):
    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=server.address, timeout=240, limits=limits) as many:
            body = {**GOOD, "num_images": 4, "deadline_ms": 3000}
            return await asyncio.gather(*[many.post("/generate", json=body) for _ in range(50)])

    replies = asyncio.run(flood())
    refused = [reply for reply in replies if reply.status_code == 429]
    assert refused, "200 images found room in a queue of 64"
    assert {reply.status_code for reply in replies} <= {200, 429, 504}
    for reply in refused:
        assert error_of(reply, 429, None)["code"] == "overloaded"
        assert int(reply.headers["retry-after"]) >= 1


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


def test_schedule_page(server, client):
    schedule = server.schedules["best"]
    page = client.get(f"/v1/schedules/{schedule.digest}").json()
    assert page["digest"] == schedule.digest
    assert type(schedule).model_validate(page["schedule"]) == schedule


def test_openapi_tells_the_truth(client):
    document = client.get("/docs.json").json()
    post = document["paths"]["/generate"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert body["num_images"]["maximum"] == 4
    assert body["prompt"]["maxLength"] == 1000
    assert "macs" in post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert post["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorView")
    error = post["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][error]["$ref"] == "#/components/schemas/ErrorView"
    assert {"/v1/tiers", "/v1/schedules/{ref}"} <= set(document["paths"])


def test_one_log_line_per_request_without_the_prompt(server, client):
    secret = "a prompt that nobody else sends"
    good = client.post("/generate", json={"prompt": secret, "tier": "draft"})
    bad = client.post("/generate", json={"prompt": secret, "seed": secret, secret: secret})
    for reply in (good, bad):
        (line,) = server.requests(reply.headers["x-request-id"])
        assert (line["event"], line["path"], line["status"]) == ("request", "/generate", reply.status_code)
    assert secret not in server.log.read_text()
