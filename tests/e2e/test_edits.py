"""Images that start from another one, on both routes: what the official openai client sends, and what is refused."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import openai
import pytest
from pictures import contents, opened
from PIL import Image

PROMPT = "red heart"


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def written(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


SOURCE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), dtype=np.uint8)
MASK[:, 32:] = 255
IMAGE, RIGHT = written(SOURCE), written(MASK)


def counted(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def test_the_official_client_edits_and_both_routes_answer_the_same(client, api):
    encoded = counted(client, 'flexi_stage_seconds_count{stage="vae_encode"}')
    fields = {"seed": 3, "tier": "best"}
    made = api.images.edit(image=IMAGE, mask=RIGHT, prompt=PROMPT, n=2, size="64x64", extra_body=fields)
    assert counted(client, 'flexi_stage_seconds_count{stage="vae_encode"}') == encoded + 1, "once for both"
    assert (made.strength, made.seed, made.tier, made.warnings) == (1.0, 3, "best", [])
    files = {"image": base64.b64encode(IMAGE).decode(), "mask": f"data:image/png;base64,{base64.b64encode(RIGHT).decode()}"}
    plain = client.post("/generate", json={"prompt": PROMPT, "num_images": 2} | fields | files).raise_for_status().json()
    as_json = client.post("/v1/images/edits", json={"prompt": PROMPT, "n": 2} | fields | files).raise_for_status().json()
    same = contents(plain["images"])
    assert contents(one["b64_json"] for one in as_json["data"]) == contents(one.b64_json for one in made.data) == same
    assert counted(client, 'flexi_stage_seconds_count{stage="vae_encode"}') == encoded + 1, "nor ever again"
    assert plain["macs"] == made.macs
    for one in made.data:
        image = opened(one.b64_json)
        assert (np.asarray(image)[:, :32] == SOURCE[:, :32]).all(), "what is not painted stays"
        assert (np.asarray(image)[:, 32:] != SOURCE[:, 32:]).any()
        assert image.text["strength"] == "1.0"
    assert plain["images"][0] != plain["images"][1]


def test_less_strength_costs_less_and_stays_nearer(client):
    asked = {"prompt": PROMPT, "image": base64.b64encode(IMAGE).decode(), "seed": 1, "tier": "reference"}
    far, near = (client.post("/generate", json=asked | {"strength": strength}).json() for strength in (0.9, 0.3))
    assert (far["steps"]["full"], near["steps"]["full"]) == (9, 3)
    assert near["macs"] == far["macs"] / 3
    assert near["relative_cost"] == far["relative_cost"] == 1.0


def test_an_edit_is_streamed_with_previews(api):
    stream = api.images.edit(image=[IMAGE], prompt=PROMPT, stream=True, partial_images=1, extra_body={"strength": 0.5})
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert opened(events[-1].b64_json).size == (64, 64)
    assert events[-1].request["strength"] == 0.5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image": [IMAGE, IMAGE]}, "image"),
        ({"image": b"GIF89a"}, "image"),
        ({"image": IMAGE[:200]}, "image"),
        ({"image": IMAGE, "mask": written(MASK[:32])}, "mask"),
        ({"image": IMAGE, "prompt": ""}, "prompt"),
        ({"image": IMAGE, "n": 9}, "n"),
        ({"image": IMAGE, "size": "123x123"}, "size"),
        ({"image": IMAGE, "extra_body": {"strength": 2}}, "strength"),
        ({"image": IMAGE, "extra_body": {"steps": 2}}, "steps"),
        ({"image": IMAGE, "input_fidelity": "high"}, "input_fidelity"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(api, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        api.images.edit(**{"prompt": PROMPT} | fields)
    assert refused.value.param == param


def test_forms_come_from_programs_and_allowed_pages_only(client):
    files = {"image": ("a.png", IMAGE)}
    ask = {"data": {"prompt": PROMPT, "strength": "0.1"}, "files": files}
    assert client.post("/v1/images/edits", **ask).status_code == 200
    assert client.post("/v1/images/edits", headers={"Origin": "http://localhost:5173"}, **ask).status_code == 200
    assert client.post("/v1/images/edits", headers={"Origin": "https://evil.example"}, **ask).status_code == 415
    assert client.post("/generate", **ask).status_code == 415


def test_broken_forms_and_large_bodies_are_refused(client):
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/images/edits", content=b"--y", headers=form).status_code == 400
    assert client.post("/v1/images/edits", content=b"", headers=form).status_code in (400, 415)
    large = {"prompt": PROMPT, "image": "A" * 200_000}
    assert client.post("/generate", json=large).status_code == 400, "read, and no image"
    assert client.post("/v1/images/generations", json=large).status_code == 413


def test_a_form_says_lossless_and_urls_as_json_does(client, api):
    fields = {"lossless": True, "output_format": "webp", "seed": 3, "tier": "draft"}
    made = api.images.edit(image=IMAGE, prompt=PROMPT, response_format="url", extra_body=fields)
    file = client.get(made.data[0].url).raise_for_status()
    assert (file.headers["content-type"], b"VP8L" in file.content) == ("image/webp", True)
    as_json = {"prompt": PROMPT, "image": base64.b64encode(IMAGE).decode()} | fields
    whole = client.post("/v1/images/edits", json=as_json).raise_for_status().json()
    assert base64.b64decode(whole["data"][0]["b64_json"]) == file.content


def test_a_job_starts_from_no_image_and_says_so(client):
    body = {"prompt": PROMPT, "image": base64.b64encode(IMAGE).decode()}
    answer = client.post("/v1/jobs", json={"body": body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body.image")
