"""POST /generate over HTTP: tiers, images, explicit schedules, company, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
import time
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from pictures import contents
from PIL import Image
from places import ROOT
from served import OTHER_SIZE, made, reference

from registry.schedule import Segment, Validated

PROMPT = "red heart"


def opened(answer: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in answer["images"]]


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def generate(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = client.post("/generate", json={"prompt": PROMPT, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("tier", ["draft", "fast", "balanced", "best", "reference"])
def test_every_tier(server, client, tier):
    schedule = {**server.schedules, "reference": reference()}[tier]
    answer = generate(client, tier=tier, seed=7)
    (image,) = opened(answer)
    assert image.size == (64, 64)
    assert (answer["tier"], answer["schedule"], answer["seed"]) == (tier, schedule.digest, 7)
    assert answer["steps"] == schedule.counts()
    assert answer["macs"] == answer["macs_per_image"] > 0
    assert (answer["relative_cost"] == 1) == (tier == "reference")
    said = {key: image.text[key] for key in ("prompt", "seed", "tier", "schedule")}
    assert said == {"prompt": PROMPT, "seed": "7", "tier": tier, "schedule": schedule.digest}


def test_defaults(client):
    answer = generate(client)
    assert answer["tier"] == "balanced"
    again = generate(client, seed=answer["seed"])
    assert (levels(opened(answer)[0]) == levels(opened(again)[0])).all()


def test_image_i_has_seed_plus_i(client):
    """To one level: rows that share a call are computed by other kernels than rows alone (see the next test)."""
    together = generate(client, tier="draft", seed=40, num_images=3)
    for i, image in enumerate(opened(together)):
        (alone,) = opened(generate(client, tier="draft", seed=40 + i))
        assert abs(levels(image) - levels(alone)).max() <= 1
        assert image.text["seed"] == str(40 + i)
    assert together["macs"] == 3 * together["macs_per_image"]


def test_an_image_does_not_depend_on_its_company(server, client):
    """Same seed alone and among rows of other tiers: at most one of 255 levels apart.

    Not bitwise: convolution and matrix kernels choose their order of summation by the batch size, so float32 results
    differ in the last bits, and a value that lies at a rounding border may fall to either side.
    """
    first = [("fast", 3, None), ("best", 3, None), ("fast", 3, OTHER_SIZE)]
    alone = [opened(generate(client, tier=tier, seed=seed, size=size))[0] for tier, seed, size in first]
    before = metrics(client)

    async def crowd() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=server.address, timeout=120) as many:
            wanted = [*first, ("balanced", 4, OTHER_SIZE), ("draft", 5, None), ("fast", 6, None)]
            bodies = [{"prompt": PROMPT, "tier": tier, "seed": seed, "size": size} for tier, seed, size in wanted]
            return [reply.json() for reply in await asyncio.gather(*[many.post("/generate", json=b) for b in bodies])]

    answers = asyncio.run(crowd())
    after, kind = metrics(client), 'kind="full"'
    waves = after[f"flexi_wave_rows_count{{{kind}}}"] - before[f"flexi_wave_rows_count{{{kind}}}"]
    rows = after[f"flexi_wave_rows_sum{{{kind}}}"] - before[f"flexi_wave_rows_sum{{{kind}}}"]
    assert rows > 2 * waves, "no wave had images of two requests"
    for answer, expected in zip(answers, alone, strict=False):
        (image,) = opened(answer)
        assert abs(levels(image) - levels(expected)).max() <= 1


def test_explicit_schedule(server, client):
    digest = server.schedules["fast"].digest
    by_tier = generate(client, tier="fast", seed=5)
    for ref in (digest, digest[:12], str(by_tier["version"])):
        answer = generate(client, schedule=ref, seed=5)
        assert (answer["schedule"], answer["tier"]) == (digest, None)
        assert (levels(opened(answer)[0]) == levels(opened(by_tier)[0])).all()


def test_guidance_one_needs_half_the_rows(client):
    with_guidance, without = (generate(client, tier="fast", guidance_scale=scale) for scale in (2, 1))
    assert with_guidance["macs"] == 2 * without["macs"]


def test_metrics_count_what_the_schedules_predict(client):
    before = metrics(client)
    asked = [("fast", None), ("balanced", OTHER_SIZE)]
    answers = [generate(client, tier=tier, num_images=2, size=size) for tier, size in asked]
    after = metrics(client)
    for answer in answers:
        tier = f'tier="{answer["tier"]}"'

        def delta(name: str, tier: str = tier) -> float:
            return sum(v - before.get(k, 0) for k, v in after.items() if k.startswith(f"{name}{{") and tier in k)

        assert delta("flexi_macs_total") == answer["macs"] == 2 * answer["macs_per_image"]
        assert delta("flexi_image_macs_sum") == answer["macs"]
        assert delta("flexi_steps_total") == 2 * sum(answer["steps"].values())
        assert delta("flexi_images_total") == 2
        assert delta("flexi_request_seconds_count") == 1


def test_a_long_weighted_prompt_is_in_the_answer_the_file_the_log_and_the_metrics(server, client):
    """It takes two chunks of the bundled model's 16 tokens; both routes make the same image of it."""
    prompt = "(red:1.3) heart on a [white] plate beside a small green tree under the big yellow sun"
    count = 'flexi_prompt_chunks_total{chunks="2"}'
    before = metrics(client).get(count, 0)
    reply = client.post("/generate", json={"prompt": prompt, "tier": "draft", "seed": 7, "prompt_syntax": "webui"})
    answer, own = reply.json(), generate(client, tier="draft")
    (image,) = opened(answer)
    assert (answer["prompt_chunks"], own["prompt_chunks"], answer["warnings"]) == (2, 1, [])
    assert (image.text["prompt_chunks"], image.text["prompt_syntax"]) == ("2", "webui")
    assert not {"prompt_chunks", "prompt_syntax"} & opened(own)[0].text.keys()
    assert 1 < answer["macs"] / own["macs"] < 1.1
    (line,) = server.requests(reply.headers["x-request-id"])
    assert line["prompt_chunks"] == 2
    assert metrics(client)[count] - before == 1
    body = {"prompt": prompt, "tier": "draft", "seed": 7, "prompt_syntax": "webui"}
    other = client.post("/v1/images/generations", json=body).json()
    assert contents([other["data"][0]["b64_json"]]) == contents(answer["images"])
    plain = client.post("/v1/images/generations", json={**body, "prompt_syntax": "plain"}).json()
    assert opened({"images": [plain["data"][0]["b64_json"]]})[0].tobytes() != image.tobytes()
    for route, field in (("/generate", "prompt"), ("/v1/images/generations", "negative_prompt")):
        refused = client.post(route, json={**body, field: "a (x:1.3"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
        assert "at character 3" in refused.json()["error"]["message"]
    page = client.get("/v1/tiers").json()
    assert (page["prompt_chunks"], page["prompt_syntaxes"]) == (3, ["plain", "webui"])


def test_a_size_is_in_the_answer_the_file_the_log_and_the_metrics(server, client):
    count = f'flexi_image_sizes_total{{size="{OTHER_SIZE}"}}'
    before = metrics(client).get(count, 0)
    reply = client.post("/generate", json={"prompt": PROMPT, "tier": "draft", "size": OTHER_SIZE})
    answer, own = reply.json(), generate(client, tier="draft")
    (image,) = opened(answer)
    assert image.size == (64, 96)
    assert image.text["size"] == answer["size"] == OTHER_SIZE
    assert 1.4 < answer["macs"] / own["macs"] < 1.7, "once and a half as many pixels, and attention"
    assert [warning["code"] for warning in answer["warnings"]] == ["size_not_validated"]
    (line,) = server.requests(reply.headers["x-request-id"])
    assert (line["size"], line["warnings"]) == (OTHER_SIZE, ["size_not_validated"])
    assert metrics(client)[count] - before == 1
    page = client.get("/v1/tiers").json()
    assert page["sizes"] == ["64x64", OTHER_SIZE]
    assert all(tier["validated_sizes"] == ["64x64"] for tier in page["tiers"])


def test_bentoml_client(server):
    with bentoml.SyncHTTPClient(server.address, timeout=120) as client:
        answer = client.generate(prompt=PROMPT, tier="draft", seed=1)
    assert answer["tier"] == "draft"
    assert opened(answer)[0].size == (64, 64)


def test_a_tier_is_served_at_the_scale_that_it_was_validated_at_and_another_scale_is_told(server, client):
    validated = Validated(sizes=((64, 64),), guidance=(7.5,))
    schedule = made("ddim", *[Segment()] * 5).model_copy(update={"validated": validated})
    server.catalog.publish(schedule)
    server.catalog.promote("validated", schedule.digest)
    until = time.monotonic() + 60
    while not (view := [tier for tier in client.get("/v1/tiers").json()["tiers"] if tier["tier"] == "validated"]):
        assert time.monotonic() < until, "the tier is not in force"
        time.sleep(0.1)
    assert (view[0]["default_guidance"], view[0]["validated_guidance"]) == (7.5, [7.5])
    own = generate(client, tier="validated", seed=7)
    (image,) = opened(own)
    assert (image.text["guidance_scale"], own["warnings"]) == ("7.5", [])
    off, one = (generate(client, tier="validated", seed=7, guidance_scale=scale) for scale in (0, 1))
    assert contents(off["images"]) == contents(one["images"])
    assert off["macs"] == own["macs"] // 2
    assert [warning["code"] for warning in off["warnings"]] == ["guidance_not_validated"]


def test_what_was_cut_of_a_prompt_is_told_in_the_answer_the_file_the_log_and_a_metric(server, client):
    """The bundled model reads three chunks of 16 tokens. Both routes tell the same, and a stream tells it in every event."""
    start = "red heart on a white plate beside a small green tree under the " * 2 + "big yellow sun " * 6
    answer = generate(client, tier="draft", prompt=f"{start}, a Purple dog")
    (warning,) = answer["warnings"]
    assert warning["code"] == "prompt_cut"
    assert warning["message"].endswith("big yellow sun , a Purple dog")
    assert opened(answer)[0].text["warnings"] == "prompt_cut"
    (line,) = server.requests(answer["request_id"])
    assert line["warnings"] == ["prompt_cut"]
    assert "Purple" not in str(line)
    before = metrics(client)['flexi_warnings_total{code="prompt_cut"}']
    body = {"prompt": f"{start}, a Purple dog", "tier": "draft", "n": 2}
    assert client.post("/v1/images/generations", json=body).json()["warnings"] == [warning]
    assert metrics(client)['flexi_warnings_total{code="prompt_cut"}'] == before + 1
    stream = client.post("/v1/images/generations", json=body | {"stream": True, "partial_images": 1}).text
    events = [json.loads(data.removeprefix("data: ")) for data in stream.splitlines() if data.startswith("data: ")]
    assert [event["warnings"] for event in events] == [[warning]] * 4
    assert events[-1]["request"]["warnings"] == [warning]


def test_a_client_that_leaves_frees_its_memory(server, client):
    cancelled = 'flexi_images_total{arm="none",outcome="cancelled",tier="reference"}'
    before = metrics(client).get(cancelled, 0)
    body = {"prompt": PROMPT, "tier": "reference", "num_images": 4}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.address}/generate", json=body, timeout=httpx.Timeout(60, read=0.2))
    until = time.monotonic() + 60
    while metrics(client).get(cancelled, 0) < before + 4:
        assert time.monotonic() < until, "the images were not given up"
        time.sleep(0.1)
    while metrics(client)["flexi_inflight_images"]:
        assert time.monotonic() < until, "the images are still in the engine"
        time.sleep(0.1)


def test_a_promoted_tier_takes_effect(server, client):
    for ref in ("draft", "fast"):
        digest = server.schedules[ref].digest
        server.catalog.promote("moving", digest)
        until = time.monotonic() + 60
        while client.post("/generate", json={"prompt": PROMPT, "tier": "moving"}).json().get("schedule") != digest:
            assert time.monotonic() < until, "the new schedule is not in force"
            time.sleep(0.1)
    shown = {key: value for key, value in metrics(client).items() if "schedule_info" in key and 'tier="moving"' in key}
    assert list(shown.values()) == [1], "what is in force no more leaves the page"


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("flexi_")}


def test_tiers_of_the_same_weights_are_served_whatever_the_folder_is_called(client, server):
    assert {model["root"] for model in client.get("/v1/models").json()["data"]} == {"emoji64"}
    assert server.schedules.keys() <= {tier["tier"] for tier in client.get("/v1/tiers").json()["tiers"]}
    assert "the registry calls this model emoji64, its folder model-mounted" in server.log.read_text()


def test_a_batch_that_is_killed_goes_on_and_does_no_line_twice(server, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [{"prompt": f"red heart {i}", "tier": "draft", "seed": i, "output_format": "webp"} for i in range(6)]
    lines[3] = {"prompt": "red heart", "tier": "nope"}
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = [sys.executable, "-m", "server.batch", prompts, "--out", out, "--url", server.address]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "progress.jsonl").exists() or (out / "progress.jsonl").read_bytes().count(b"\n") < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.webp")}
    before = [json.loads(line)["line"] for line in (out / "progress.jsonl").read_bytes().splitlines(keepends=True)[1:-1]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split(":")[0]) == (1, "6 lines, 1 with an error"), done.stderr
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [result["line"] for result in results] == [1, 2, 3, 4, 5, 6]
    assert results[3]["error"]["code"] == "not_found"
    for i in (0, 1, 2, 4, 5):
        assert (results[i]["files"], results[i]["answer"]["seed"]) == ([f"00000{i + 1}.webp"], i)
        assert Image.open(out / results[i]["files"][0]).size == (64, 64)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if int(path.stem) in before)
