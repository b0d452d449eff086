"""A server in float16 whose decoder overflows there: its images are those of a bfloat16 decoder, and it says so."""

from __future__ import annotations

import base64
import io
import json

import httpx
import model_folders
import numpy as np
import pytest
import torch
from PIL import Image
from served import PATIENCE

from engine.loading import load
from engine.sampler import generate
from examples.launch import serving
from registry.schedule import teacher

STEPS = 4
BODY = {"prompt": "red heart", "seed": 7, "guidance_scale": 3.0, "tier": "reference"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folders.scaled(model_folders.emoji(tmp_path_factory.mktemp("models") / "emoji64"), 3e4)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "server.log"


@pytest.fixture(scope="module")
def client(folder, log):
    settings = {"FLEXI_MODEL": str(folder), "FLEXI_DTYPE": "float16", "FLEXI_TEACHER_STEPS": str(STEPS)}
    own = {"FLEXI_REGISTRY": str(log.parent / "registry"), "FLEXI_STATE": str(log.parent / "state")}
    with serving(settings | own, log, patience=PATIENCE) as address, httpx.Client(base_url=address, timeout=120) as client:
        yield client


def opened(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)


def test_an_image_is_what_a_bfloat16_decoder_makes_of_the_same_latent(client, folder):
    answer = client.post("/generate", json=BODY)
    assert answer.status_code == 200, answer.text
    model, wide = load(folder, dtype="float16"), load(folder)
    program = model.compile(teacher(model.ref, model.solver("ddim", STEPS)))
    negative, noise = model.negative([""]), model.noise(7)[None]
    latent = generate(model.network, program, noise, model.encode(["red heart"]), negative, 3.0)
    assert not model.decode_later(latent).finite.any(), "in float16 it is no image"
    wide.decoder.vae.to(torch.float16).to(torch.bfloat16)
    want = wide.decode_later(latent).images[0].numpy().astype(int)
    assert abs(opened(answer.json()["images"][0]) - want).max() <= 1
    assert want.std() > 10, "there is something to see"


def test_previews_of_a_stream_are_pictures_too(client):
    body = {"prompt": "red heart", "quality": "max", "seed": 7, "stream": True, "partial_images": 2}
    with client.stream("POST", "/v1/images/generations", json=body) as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: {")]
    pictures = [opened(event["b64_json"]) for event in events]
    assert len(pictures) == 3, [event.get("type") for event in events]
    assert all(picture.std() > 10 for picture in pictures)


def test_the_log_says_it_once_and_a_metric_too(client, log):
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    said = [(line["level"], line["event"]) for line in lines if "overflows" in line["event"]]
    assert said == [("warning", "the decoder overflows in float16: from now on it runs in bfloat16")]
    assert "flexi_decoder_upcast 1.0" in client.get("/metrics").text
