"""One real server with all bundled models, and memory for fewer: every one answers, whichever is in memory."""

from __future__ import annotations

import base64
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from served import LORAS, PATIENCE

from examples.launch import serving
from models.bundled import BUNDLED

MEMORY = 60  # MiB: emoji64 takes 37, glyphs-ldm 28, glyphs-ddpm 15
PROMPTS = {"emoji64": ("red heart", (64, 64)), "glyphs-ldm": ("R", (64, 64)), "glyphs-ddpm": ("anything", (32, 32))}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server whose last model has no folder."""
    folder = tmp_path_factory.mktemp("several")
    listed = folder / "models.txt"
    lines = [str(BUNDLED[name].folder.absolute()) for name in PROMPTS]
    listed.write_text("\n".join(["# the first is the default", *lines, f"broken={folder / 'nothing'}"]))
    own = {"FLEXI_MODELS": str(listed), "FLEXI_MODELS_MIB": str(MEMORY), "FLEXI_TEACHER_STEPS": "3"}
    own |= {"FLEXI_REGISTRY": str(folder / "registry"), "FLEXI_STATE": str(folder / "state")}
    own |= {"FLEXI_LORAS": str(LORAS)}
    with serving(own, folder / "log", patience=PATIENCE) as address, httpx.Client(base_url=address, timeout=240) as client:
        for _ in range(600):  # the others open beside the default, which is ready
            states = {model["id"]: model["state"] for model in client.get("/v1/models").json()["data"]}
            if states["broken"] == "failed" and all(
                client.get("/v1/tiers", params={"model": name}).is_success for name in PROMPTS
            ):
                break
        yield client


def generate(client: httpx.Client, model: str | None, seed: int) -> dict[str, object]:
    reply = client.post("/generate", json={"prompt": PROMPTS[model or "emoji64"][0], "seed": seed, "model": model})
    assert reply.status_code == 200, reply.text
    made: dict[str, object] = reply.json()
    return made


def pixels(made: dict[str, object]) -> np.ndarray:
    (file,) = made["images"]  # type: ignore[misc]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB")).astype(int)


def test_all_models_answer_at_once_in_less_memory_than_they_take(client: httpx.Client) -> None:
    asked = [name for _ in range(3) for name in PROMPTS]
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda name: generate(client, name, 7), asked))
    by_model = defaultdict(list)
    for name, made in zip(asked, answers, strict=True):
        assert (made["model"], pixels(made).shape) == (name, (*PROMPTS[name][1], 3))
        by_model[name].append(pixels(made))
    for images in by_model.values():
        assert max(abs(image - images[0]).max() for image in images) <= 1, "before and after it was unloaded"
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {models[name]["state"] for name in PROMPTS} == {"loaded", "unloaded"}
    assert sum(model["memory_bytes"] for model in models.values() if model["state"] == "loaded") <= MEMORY << 20
    page = client.get("/metrics").text
    for name in PROMPTS:
        spent = sum(float(macs) for macs in re.findall(rf'^flexi_macs_total{{.*model="{name}".*}} (.+)$', page, re.MULTILINE))
        assert spent == sum(int(str(made["macs"])) for made in answers if made["model"] == name)
        assert re.search(rf'^flexi_model_loads_total{{model="{name}"}} [1-9]', page, re.MULTILINE)


def test_the_first_is_the_default_and_the_images_are_those_of_the_openai_route(client: httpx.Client) -> None:
    assert client.get("/readyz").json()["model"] == generate(client, None, 1)["model"] == "emoji64"
    body = {"prompt": "R", "model": "glyphs-ldm", "seed": 3, "tier": "reference"}
    reply = client.post("/v1/images/generations", json=body).json()
    (image,) = reply["data"]
    theirs = pixels({"images": [image["b64_json"]]})
    assert reply["model"] == "glyphs-ldm"
    assert abs(theirs - pixels(generate(client, "glyphs-ldm", 3))).max() <= 1


def test_a_model_that_there_is_not_gets_404_and_one_that_is_broken_503(client: httpx.Client) -> None:
    for send in (
        lambda name: client.post("/generate", json={"prompt": "x", "model": name}),
        lambda name: client.post("/v1/images/generations", json={"prompt": "x", "model": name}),
        lambda name: client.get("/v1/tiers", params={"model": name}),
        lambda name: client.get("/v1/schedules/1", params={"model": name}),
    ):
        for name, status, said in (
            ("sdxl", 404, "emoji64, glyphs-ldm, glyphs-ddpm, broken"),
            ("broken", 503, "model_index.json"),
        ):
            reply = send(name)
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (status, "model"), error
            assert said in error["message"]
    assert client.get("/v1/models/broken").json()["state"] == "failed"
    assert client.get("/readyz").status_code == 200


def test_a_deadline_holds_while_a_model_is_loaded(client: httpx.Client) -> None:
    generate(client, "emoji64", 1)
    generate(client, "glyphs-ddpm", 1)
    models = {model["id"]: model["state"] for model in client.get("/v1/models").json()["data"]}
    assert models["glyphs-ldm"] == "unloaded"
    reply = client.post("/generate", json={"prompt": "R", "model": "glyphs-ldm", "deadline_ms": 1})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert generate(client, "glyphs-ldm", 1)["model"] == "glyphs-ldm"


def test_each_model_offers_the_loras_that_fit_it_and_adds_them_anew_after_it_was_unloaded(client: httpx.Client) -> None:
    models = {model["id"]: [lora["name"] for lora in model["loras"]] for model in client.get("/v1/models").json()["data"]}
    assert models == {"emoji64": ["grey"], "glyphs-ldm": [], "glyphs-ddpm": [], "broken": []}
    asked = {"prompt": "red heart", "seed": 2, "loras": [{"name": "grey"}]}
    first = client.post("/generate", json=asked).raise_for_status().json()
    for name in ("glyphs-ldm", "glyphs-ddpm"):
        generate(client, name, 1)
    states = {model["id"]: model["state"] for model in client.get("/v1/models").json()["data"]}
    assert states["emoji64"] == "unloaded"
    assert pixels(client.post("/generate", json=asked).raise_for_status().json()).tolist() == pixels(first).tolist()
    refused = client.post("/generate", json=asked | {"prompt": "R", "model": "glyphs-ldm"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "loras")
