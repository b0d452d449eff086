"""The official openai client, unmodified, against POST /v1/images/generations; and requests that are cancelled by their id."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time

import httpx
import openai
import pytest
from pictures import opened
from PIL import Image
from served import OTHER_SIZE

PROMPT = "red heart"


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.parametrize(
    ("quality", "tier"),
    [
        ("low", "draft"),
        ("medium", "balanced"),
        ("high", "best"),
        ("max", "reference"),
        ("auto", "balanced"),
        (None, "balanced"),
    ],
)
def test_quality_chooses_the_tier(server, api, quality, tier):
    made = api.images.generate(prompt=PROMPT, **({"quality": quality} if quality else {}), extra_body={"seed": 3})
    assert made.tier == tier
    assert made.created == pytest.approx(time.time(), abs=3600)
    assert made.size == "64x64"
    assert opened(made.data[0].b64_json).text["tier"] == tier
    assert made._request_id == made.request_id


def test_auto_keeps_the_deadline_by_choosing_the_tier(server, client, api):
    """An empty server, so that the best tier is in time for a generous deadline, and none for one of a millisecond."""
    settled(client)
    made = api.images.generate(prompt=PROMPT, extra_body={"tier": "auto", "deadline_ms": 200_000})
    assert made.tier == "best"
    assert 0 < made.predicted_ms < 200_000
    assert api.images.generate(prompt=PROMPT, extra_body={"tier": "auto"}).tier == "balanced"
    cheapest = min(client.get("/v1/tiers").json()["tiers"], key=lambda tier: tier["relative_cost"])["tier"]
    before = ended(client, "deadline", cheapest)
    with pytest.raises(openai.InternalServerError):
        api.images.generate(prompt=PROMPT, extra_body={"tier": "auto", "deadline_ms": 1})
    assert ended(client, "deadline", cheapest) == before + 1


def ended(client, outcome, tier) -> float:
    lines = client.get("/metrics").text.splitlines()
    wanted = f'flexi_request_seconds_count{{arm="none",outcome="{outcome}",tier="{tier}"}}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


def test_it_answers_what_generate_answers(client, api):
    fields = {"tier": "fast", "seed": 11, "negative_prompt": "blue", "guidance_scale": 2.0}
    made = api.images.generate(prompt=PROMPT, n=2, user="anna", size=OTHER_SIZE, extra_body=fields).model_dump()
    asked = {"prompt": PROMPT, "num_images": 2, "unit": "anna", "size": OTHER_SIZE}
    plain = client.post("/generate", json=asked | fields).json()
    times = {"request_id", "predicted_ms", "queue_ms", "denoise_ms", "images"}
    assert {key: made[key] for key in plain.keys() - times} == {key: plain[key] for key in plain.keys() - times}
    assert len(made["data"]) == 2
    assert "images" not in made


def test_a_unit_by_its_newer_name(api):
    assert api.images.generate(prompt=PROMPT, quality="low", safety_identifier="bob", user="anna").tier == "draft"


def test_an_explicit_schedule(server, api):
    digest = server.schedules["fast"].digest
    made = api.images.generate(prompt=PROMPT, extra_body={"schedule": digest})
    assert (made.schedule, made.tier) == (digest, None)


def test_a_stream_shows_previews_and_then_the_same_image(api):
    events = stream(api, size=OTHER_SIZE)
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    (done,) = [event for event in events if event.type == "image_generation.completed"]
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert events[-1] is done
    assert done.request["tier"] == "reference"
    whole = api.images.generate(prompt=PROMPT, quality="max", size=OTHER_SIZE, extra_body={"seed": 1})
    images = [opened(event.b64_json) for event in (*partial, done)]
    assert {event.size for event in events} == {whole.size} == {OTHER_SIZE}
    assert {image.size for image in images} == {(64, 96)}
    last = [abs(a - b) for a, b in zip(images[-1].tobytes(), opened(whole.data[0].b64_json).tobytes(), strict=True)]
    assert max(last) <= 1
    assert done.request["macs"] == whole.macs


def stream(api, n=1, **fields):
    asked = {"prompt": PROMPT, "quality": "max", "n": n, "partial_images": 3, "extra_body": {"seed": 1}} | fields
    return list(api.images.generate(stream=True, **asked))


@pytest.mark.parametrize(("name", "quality"), [("png", 100), ("jpeg", 40), ("webp", 100)])
def test_every_format_on_both_routes_in_streams_and_as_urls(client, api, name, quality):
    wanted = {"output_format": name, "output_compression": quality}
    events = stream(api, partial_images=1, quality="low", **wanted)
    whole = api.images.generate(prompt=PROMPT, quality="low", response_format="url", extra_body={"seed": 1}, **wanted)
    plain = client.post("/generate", json={"prompt": PROMPT, "tier": "draft", "seed": 1} | wanted).json()
    assert {event.output_format for event in events} == {whole.output_format} == {plain["output_format"]} == {name}
    url = whole.data[0].url
    assert url.startswith(f"{str(client.base_url).rstrip('/')}/v1/images/files/")
    assert url.endswith(f".{name}")
    fetched = httpx.get(url)  # without any key
    assert (fetched.status_code, fetched.headers["content-type"]) == (200, f"image/{name}")
    assert 0 < whole.expires_at - time.time() <= 3600
    data = base64.b64encode(fetched.content).decode()
    for b64 in (*(event.b64_json for event in events), data, *plain["images"]):
        image = opened(b64)
        image.load()
        assert (image.format, image.size) == (name.upper(), (64, 64))
        assert (said := parameters(image))["prompt"] == PROMPT
        assert (said["seed"], said["tier"], said["schedule"]) == ("1", "draft", plain["schedule"])


def test_a_kept_file_is_read_without_a_key_and_cached_until_it_is_gone(server, client, api):
    made = api.images.generate(prompt=PROMPT, quality="low", response_format="url", n=2, extra_body={"seed": 5})
    plain = client.post("/generate", json={"prompt": PROMPT, "tier": "draft", "seed": 5, "response_format": "url"}).json()
    first, second = (httpx.get(image.url) for image in made.data)
    assert first.content != second.content
    assert opened(base64.b64encode(httpx.get(plain["images"][0]).content)).text["seed"] == "5"
    assert "private" in first.headers["cache-control"]
    assert 0 < int(first.headers["cache-control"].partition("max-age=")[2].partition(",")[0]) <= 3600
    again = httpx.get(made.data[0].url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.head(made.data[0].url).headers["content-length"] == str(len(first.content))
    gone = httpx.get(f"{server.address}/v1/images/files/{'0' * 40}.png")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    secret = made.data[0].url.rpartition("/")[2]
    assert secret not in server.log.read_text()


def test_a_job_of_an_openai_body_is_answered_as_the_route_would_have_answered(client, api):
    body = {"prompt": PROMPT, "quality": "low", "n": 2, "seed": 5, "output_format": "webp"}
    asked = {"endpoint": "/v1/images/generations", "body": body}
    kept = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "order 17"})
    assert kept.status_code == 202
    job = kept.json()
    assert kept.headers["location"] == f"/v1/jobs/{job['id']}"
    assert client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "order 17"}).json()["id"] == job["id"]
    other = client.post("/v1/jobs", json={"body": {"prompt": "another"}}, headers={"Idempotency-Key": "order 17"})
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    done = ended_job(client, job["id"])
    whole = api.images.generate(prompt=PROMPT, quality="low", n=2, output_format="webp", extra_body={"seed": 5}).model_dump()
    assert (done["state"], done["error"]) == ("succeeded", None)
    for field in ("macs", "schedule", "tier", "seed", "steps", "size", "quality", "output_format"):
        assert done["result"][field] == whole[field], field
    for image in done["result"]["data"]:
        assert Image.open(io.BytesIO(httpx.get(image["url"]).content)).format == "WEBP"
    assert job["id"] in [listed["id"] for listed in client.get("/v1/jobs").json()["data"]]


def test_a_job_is_checked_when_it_comes_and_cancelled_when_it_is_not_wanted_any_more(client):
    for body, param in (
        ({"body": {"prompt": "x", "seed": -3}}, "body.seed"),
        ({"body": {"prompt": "x", "num_images": 5}}, "body.num_images"),
        ({"body": {}}, "body.prompt"),
        ({"endpoint": "/v1/images/generations", "body": {"prompt": "x", "stream": True}}, "body.stream"),
        ({"endpoint": "/v1/images/edits", "body": {"prompt": "x"}}, "endpoint"),
        ({"body": {"prompt": "x"}, "webhook": "https://example.com/"}, "webhook"),
        ({}, "body"),
    ):
        reply = client.post("/v1/jobs", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert client.post("/v1/jobs", json={"body": {"prompt": "x", "tier": "nope"}}).json()["error"]["param"] == "body.tier"
    job = client.post("/v1/jobs", json={"body": {"prompt": PROMPT, "tier": "reference", "num_images": 4}}).json()["id"]
    assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert client.get(f"/v1/jobs/{job}").json()["error"]["code"] == "cancelled"
    assert client.get(f"/v1/jobs/job-{'0' * 32}").status_code == 404


def ended_job(client, job: str) -> dict:
    for _ in range(1200):
        seen = client.get(f"/v1/jobs/{job}").json()
        if seen["state"] not in ("queued", "running"):
            return seen
        time.sleep(0.1)
    raise AssertionError(seen)


def parameters(image: Image.Image) -> dict[str, str]:
    """As docs/api.md says that they are read."""
    return image.text if image.format == "PNG" else json.loads(image.getexif().get_ifd(0x8769)[0x9286][8:])


def test_a_stream_that_shall_tell_progress_says_the_plan_and_each_computed_step(server, api):
    planned, *events = stream(api, n=2, quality="low", partial_images=0, extra_body={"seed": 1, "progress": True})
    assert (planned.type, planned.tier, planned.seed) == ("image_generation.planned", "draft", 1)
    assert planned.schedule == server.schedules["draft"].digest
    last = [event for event in events if event.type == "image_generation.completed"][-1]
    assert (planned.macs, planned.predicted_ms) == (last.request["macs"], last.request["predicted_ms"])
    for image in range(2):
        steps = [event for event in events if event.type == "image_generation.step" and event.image_index == image]
        assert [event.step for event in steps] == list(range(1, planned.steps + 1)) == list(range(1, steps[0].steps + 1))


def test_a_stream_of_several_images_tells_which_is_which(api):
    events = stream(api, n=2)
    done = {event.image_index: event for event in events if event.type == "image_generation.completed"}
    assert set(done) == {0, 1}
    assert [opened(done[i].b64_json).text["seed"] for i in (0, 1)] == ["1", "2"]


def test_the_async_client(server):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="unused", timeout=120) as client:
            return await asyncio.gather(*[client.images.generate(prompt=PROMPT, quality="low") for _ in range(3)])

    assert {made.tier for made in asyncio.run(go())} == {"draft"}


def test_models(api):
    model, *_aliases = api.models.list().data
    assert model.id == api.models.retrieve("emoji64").id == "emoji64"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("sdxl")


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "sdxl"}, openai.NotFoundError, "model"),
        ({"size": "512x512"}, openai.BadRequestError, "size"),
        ({"size": "huge"}, openai.BadRequestError, "size"),
        ({"n": 5}, openai.BadRequestError, "n"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"response_format": "url", "stream": True}, openai.BadRequestError, "response_format"),
        ({"response_format": "file"}, openai.BadRequestError, "response_format"),
        ({"output_format": "gif"}, openai.BadRequestError, "output_format"),
        ({"output_compression": 101}, openai.BadRequestError, "output_compression"),
        ({"background": "transparent"}, openai.BadRequestError, "background"),
        ({"partial_images": 2}, openai.BadRequestError, "partial_images"),
        ({"style": "vivid"}, openai.BadRequestError, "style"),
        ({"safety_identifier": "x" * 129}, openai.BadRequestError, "safety_identifier"),
        ({"quality": "low", "extra_body": {"tier": "best"}}, openai.BadRequestError, "tier"),
        ({"extra_body": {"tier": "nope"}}, openai.NotFoundError, "tier"),
        ({"extra_body": {"schedule": "12345678"}}, openai.NotFoundError, "schedule"),
        ({"stream": True, "extra_body": {"tier": "nope"}}, openai.NotFoundError, "tier"),
    ],
    ids=str,
)
def test_errors_are_the_clients_own(api, fields, error, param):
    with pytest.raises(error) as refused:
        api.images.generate(prompt=PROMPT, **fields)
    assert refused.value.param == param
    assert refused.value.request_id


@pytest.mark.parametrize("streamed", [False, True])
def test_a_deadline_is_not_tried_again(server, streamed):
    seen = []
    hooks = {"response": [lambda response: seen.append(response.status_code)]}
    with httpx.Client(event_hooks=hooks) as http:
        body = {"prompt": PROMPT, "quality": "max", "deadline_ms": 1, "stream": streamed}
        reply = http.post(f"{server.address}/v1/images/generations", json=body)
    assert (seen, reply.headers["x-should-retry"]) == ([504], "false")
    assert reply.json()["error"]["param"] == "deadline_ms"


def slow(server, request_id, streamed):
    body = {"prompt": PROMPT, "quality": "max", "n": 4, "stream": streamed, "partial_images": 3 if streamed else None}
    url, headers = f"{server.address}/v1/images/generations", {"X-Request-Id": request_id}
    return httpx.post(url, json=body, headers=headers, timeout=120)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_is_cancelled_by_its_id(server, client, streamed):
    replies, request_id = [], f"mine-{streamed}"
    thread = threading.Thread(target=lambda: replies.append(slow(server, request_id, streamed)))
    thread.start()
    until = time.monotonic() + 60
    while (reply := client.delete(f"/v1/requests/{request_id}")).status_code == 404:
        assert time.monotonic() < until, "it was never running"
    assert reply.json() == {"cancelled": 1}
    thread.join(timeout=60)
    if replies[0].status_code == 200:  # the stream had begun
        last = replies[0].text.strip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "cancelled"
    else:
        assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (409, "cancelled")
    settled(client)


def test_a_stream_that_nobody_listens_to_frees_its_memory(server, client):
    before = cancelled(client)
    body = {"prompt": PROMPT, "quality": "max", "n": 4, "stream": True, "partial_images": 3}
    with httpx.stream("POST", f"{server.address}/v1/images/generations", json=body, timeout=60) as reply:
        next(reply.iter_lines())
    until = time.monotonic() + 60
    while cancelled(client) == before:
        assert time.monotonic() < until, "the images were not given up"
        time.sleep(0.1)
    settled(client)


def cancelled(client) -> float:
    lines = client.get("/metrics").text.splitlines()
    wanted = 'flexi_images_total{arm="none",outcome="cancelled",tier="reference"}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


def settled(client) -> None:
    until = time.monotonic() + 60
    while "flexi_inflight_images 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < until, "images are still in the engine"
        time.sleep(0.1)
