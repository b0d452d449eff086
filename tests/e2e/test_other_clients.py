"""Clients in the wild: LangChain's wrapper, litellm, both generations of `openai`, and the bodies that other programs send."""

from __future__ import annotations

import base64
import io
import json

import httpx
import openai
import other_clients
import pytest
from PIL import Image

OLD = "openai-0.28"
BODIES = {
    "a client that sends every field": {
        "prompt": "red heart",
        "n": 1,
        "user": "",
        "quality": None,
        "size": None,
        "style": None,
    },
    "Nextcloud without a model": {"prompt": "red heart", "n": 1, "model": "", "size": ""},
    "Nextcloud with an alias": {"prompt": "red heart", "n": 1, "model": "gpt-image-1", "size": "64x64"},
    "a form": {"prompt": "red heart", "negative_prompt": None, "seed": "", "tier": "", "guidance_scale": None, "stream": ""},
    "Open WebUI": {"prompt": "red heart", "n": 1, "model": "dall-e-3", "response_format": "b64_json"},
    "Open WebUI, gpt-image": {"prompt": "red heart", "n": 1, "model": "gpt-image-1"},
    "Vercel's AI SDK": {"prompt": "red heart", "n": 1, "model": "dall-e-3", "size": "64x64", "response_format": "b64_json"},
    "LibreChat": {
        "prompt": "red heart",
        "n": 1,
        "model": "dall-e-3",
        "quality": "standard",
        "size": "auto",
        "response_format": "url",
    },
    "samples of OpenAI's pages": {"prompt": "red heart", "model": "dall-e-3", "quality": "hd", "n": 1, "size": "64x64"},
    "web UIs": {"prompt": "red heart, " * 363, "negative_prompt": "blurry, " * 499, "seed": -1},
}


@pytest.mark.parametrize("sender", BODIES)
def test_what_programs_send_is_served(client, sender):
    reply = client.post("/v1/images/generations", json=BODIES[sender])
    assert (reply.status_code, reply.json()["model"]) == (200, "emoji64"), reply.text
    (image,) = reply.json()["data"]
    assert picture(image.get("url") or image["b64_json"]).size == (64, 64)


def test_a_random_seed_is_said_and_makes_the_same_image_again(client):
    for path, made in (
        ("/generate", lambda answer: answer["images"]),
        ("/v1/images/generations", lambda answer: answer["data"]),
    ):
        first, second = (client.post(path, json={"prompt": "red heart", "tier": "draft", "seed": -1}).json() for _ in range(2))
        again = client.post(path, json={"prompt": "red heart", "tier": "draft", "seed": first["seed"]}).json()
        assert (first["seed"] >= 0, first["seed"] != second["seed"]) == (True, True)
        assert made(again) == made(first)


def test_models_under_every_name(client):
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["emoji64", "dall-e-2", "dall-e-3", "gpt-image-1"]
    assert {model["root"] for model in listed} == {"emoji64"}
    for model in listed:
        assert client.get(f"/v1/models/{model['id']}").json() == model
    refused = client.get("/v1/models/sdxl")
    assert (refused.status_code, "FLEXI_MODEL_ALIASES" in refused.json()["error"]["message"]) == (404, True)


def test_the_size_of_another_model_is_refused_with_what_works(client):
    error = client.post("/v1/images/generations", json={"prompt": "x", "size": "1024x1024"}).json()["error"]
    assert error["message"] == "size: this server makes 64x64, 64x96: leave size out, or say auto"


def test_the_new_openai_package(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused") as api:
        made = api.images.generate(model="dall-e-3", prompt="red heart", size="64x64", quality="standard", n=1)
        assert picture(made.data[0].url).size == (64, 64)
        made = api.images.generate(model="gpt-image-1", prompt="red heart", background="auto", moderation="low")
        assert picture(made.data[0].b64_json).size == (64, 64)
        assert api.models.retrieve("dall-e-3").id == "dall-e-3"


def test_the_old_openai_package(server):
    program = """
import json, openai
assert openai.__version__ == "0.28.1"
ask = dict(prompt="red heart", n=2, size="64x64")
print(json.dumps([
    [image["url"] for image in openai.Image.create(model="dall-e-2", **ask)["data"]],
    [image["url"] for image in openai.Image.create(response_format="url", **ask)["data"]],
    [image["b64_json"] for image in openai.Image.create(response_format="b64_json", user="anna", **ask)["data"]],
]))
try:
    openai.Image.create(prompt="red heart", size="1024x1024")
except openai.error.InvalidRequestError as error:
    print(error.param, error.http_status)
"""
    made, refused = other_clients.run(OLD, program, server.address).splitlines()
    images = json.loads(made)
    assert [len(answer) for answer in images] == [2, 2, 2]
    assert {picture(image).size for answer in images for image in answer} == {(64, 64)}
    assert refused == "size 400"


def test_langchains_wrapper_gets_the_urls_that_it_reads(server):
    program = """
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
print(DallEAPIWrapper(size="64x64", n=2).run("red heart"))
print(DallEAPIWrapper(model="dall-e-3", size="auto", quality="hd").run("red heart"))
"""
    urls = other_clients.run("langchain", program, server.address).split()
    assert [picture(url).text["tier"] for url in urls] == ["balanced", "balanced", "best"]


def test_litellm(server):
    program = """
import litellm, os
def ask(model, **fields):
    made = litellm.image_generation(model=model, prompt="red heart", api_base=os.environ["OPENAI_API_BASE"], **fields)
    print(made.data[0].url or made.data[0].b64_json)
ask("openai/emoji64")
ask("openai/gpt-image-1", quality="high", size="auto")
ask("openai/dall-e-3", size="64x64", n=1)
"""
    images = other_clients.run("litellm", program, server.address).split()
    assert [picture(image).text["tier"] for image in images] == ["balanced", "best", "balanced"]
    assert images[2].startswith(f"{server.address}/v1/images/files/")


def picture(image: str) -> Image.Image:
    """From a URL, as any program fetches one, or from base64."""
    file = httpx.get(image).raise_for_status().content if image.startswith("http") else base64.b64decode(image)
    return Image.open(io.BytesIO(file))
