"""LoRAs by name on every route that makes images, beside images without: what is answered, written down and refused."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import httpx
import numpy as np
import pytest
from pictures import contents, opened
from served import LORAS

from server.request_fields import TINY_PNG

PROMPT, GREY = "red heart", [{"name": "grey", "scale": 0.75}]
IMAGE = base64.b64decode(TINY_PNG)
DIGEST = hashlib.sha256((LORAS / "grey.safetensors").read_bytes()).hexdigest()


def colour(image: str) -> float:
    """How much the channels differ."""
    levels = np.asarray(opened(image)).astype(float)
    return float((levels.max(axis=2) - levels.min(axis=2)).mean())


def test_what_is_offered_is_listed_with_its_digest(client: httpx.Client) -> None:
    (model,) = [one for one in client.get("/v1/models").json()["data"] if one["id"] == "emoji64"]
    assert model["loras"] == [{"name": "grey", "digest": DIGEST, "layers": {"unet": 115}}]
    assert client.get("/v1/tiers").json()["loras"] == ["grey"]


def test_all_routes_make_the_same_image_with_a_lora_and_say_so(client: httpx.Client, server) -> None:
    asked = {"prompt": PROMPT, "seed": 3, "tier": "best"}
    base = client.post("/generate", json=asked).raise_for_status().json()
    made = (
        client.post("/generate", json=asked | {"loras": GREY}, headers={"X-Request-Id": "with-grey"}).raise_for_status().json()
    )
    assert made["loras"] == [{"name": "grey", "scale": 0.75, "digest": DIGEST}]
    assert base["loras"] == []
    assert [warning["code"] for warning in made["warnings"]] == ["lora_not_validated"]
    assert (made["macs"], made["steps"], made["relative_cost"]) == (base["macs"], base["steps"], base["relative_cost"])
    assert colour(made["images"][0]) < 0.6 * colour(base["images"][0])
    assert json.loads(opened(made["images"][0]).text["loras"]) == made["loras"]
    assert "loras" not in opened(base["images"][0]).text
    (line,) = server.requests("with-grey")
    assert (line["loras"], line["warnings"]) == ("grey:0.75", ["lora_not_validated"])
    others = client.post("/v1/images/generations", json=asked | {"loras": GREY}).raise_for_status().json()
    assert contents(one["b64_json"] for one in others["data"]) == contents(made["images"])
    assert others["loras"] == made["loras"]
    again = client.post("/generate", json=asked | {"loras": [{"name": "grey", "scale": 0}]}).raise_for_status().json()
    assert (contents(again["images"]), again["loras"]) == (contents(base["images"]), [])


def test_the_full_model_with_loras_carries_no_warning(client: httpx.Client) -> None:
    made = client.post("/generate", json={"prompt": PROMPT, "tier": "reference", "loras": GREY}).raise_for_status().json()
    assert made["warnings"] == []


def test_an_edit_says_loras_in_a_form_as_json(client: httpx.Client) -> None:
    form = {"prompt": PROMPT, "strength": "0.5", "seed": "1", "loras": json.dumps(GREY)}
    made = client.post("/v1/images/edits", data=form, files={"image": ("a.png", IMAGE)}).raise_for_status().json()
    body = {"prompt": PROMPT, "strength": 0.5, "seed": 1, "loras": GREY, "image": base64.b64encode(IMAGE).decode()}
    as_json = client.post("/v1/images/edits", json=body).raise_for_status().json()
    assert made["loras"] == as_json["loras"] != []
    sent, same = ([one | {"b64_json": contents([one["b64_json"]])} for one in answer["data"]] for answer in (made, as_json))
    assert sent == same
    refused = client.post("/v1/images/edits", data=form | {"loras": "[grey"}, files={"image": ("a.png", IMAGE)})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "loras")


def test_a_job_and_a_stream_have_loras(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "seed": 3, "tier": "draft", "loras": GREY}
    job = client.post("/v1/jobs", json={"body": body}).raise_for_status().json()
    with client.stream("POST", "/v1/images/generations", json=body | {"stream": True, "partial_images": 1}) as stream:
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]
    assert events[-1]["request"]["loras"][0]["name"] == "grey"
    until = time.monotonic() + 100
    while (done := client.get(f"/v1/jobs/{job['id']}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert done["result"]["loras"][0]["scale"] == 0.75
    file = base64.b64encode(client.get(done["result"]["images"][0]).content).decode()
    assert contents([file]) == contents([events[-1]["b64_json"]])


@pytest.mark.parametrize(
    ("loras", "status", "param", "said"),
    [
        ([{"name": "ink"}], 404, "loras.0.name", "this model has grey"),
        ([{"name": "grey"}, {"name": "grey", "scale": 0.5}], 400, "loras.1.name", "named before"),
        ([{"name": "grey", "scale": 4.5}], 400, "loras.0.scale", "4"),
        ([{"name": "../grey"}], 400, "loras.0.name", "pattern"),
        ([{"name": "grey", "weight": 1}], 400, "loras.0.weight", "not a field here"),
        ([{"scale": 1}], 400, "loras.0.name", "required"),
        ([{"name": f"l{i}"} for i in range(5)], 400, "loras", "at most 4"),
        ("grey", 400, "loras", "should be a valid"),
    ],
)
@pytest.mark.parametrize("route", ["/generate", "/v1/images/generations"])
def test_what_cannot_be_is_refused_by_its_place(client: httpx.Client, route: str, loras, status, param, said) -> None:
    answer = client.post(route, json={"prompt": PROMPT, "loras": loras})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert said in error["message"]
    job = client.post("/v1/jobs", json={"endpoint": route, "body": {"prompt": PROMPT, "loras": loras}})
    assert (job.status_code, job.json()["error"]["param"]) == (status, f"body.{param}")


def test_the_document_names_what_is_offered(client: httpx.Client) -> None:
    schemas = client.get("/docs.json").json()["components"]["schemas"]
    for body in ("Generate", "ImagesRequest", "EditsRequest"):
        loras = schemas[body]["properties"]["loras"]["anyOf"][0]
        assert loras["items"]["properties"]["name"] == {"enum": ["grey"]}
        assert loras["examples"]
