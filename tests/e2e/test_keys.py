"""A server that everybody can reach: who gets in, who no longer does, what its log says of them, and whose its images are."""

from __future__ import annotations

import io
import json
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bentoml
import c2pa
import httpx
import numpy as np
import pytest
from api_keys import keys
from PIL import Image
from served import PATIENCE, SETTINGS

from examples.launch import started
from server.access.key_file import sha256
from server.marking.trial_certificate import CHAIN, KEY, write_trial_certificate

PROMPT = "a prompt that nobody else sends"
BODY = {"prompt": PROMPT, "negative_prompt": f"not {PROMPT}", "tier": "reference", "seed": 1}


@dataclass(frozen=True)
class Guarded:
    """The server, its file of keys, a good key, and its log."""

    address: str
    keys: Path
    token: str
    log: Path

    def status(self, token: str) -> int:
        """What a request with this key is answered."""
        return httpx.get(f"{self.address}/v1/tiers", headers={"Authorization": f"Bearer {token}"}).status_code

    def comes_to(self, token: str, status: int) -> bool:
        """Whether it is answered so, soon."""
        until = time.monotonic() + 60
        while self.status(token) != status:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file, log = folder / "keys.json", folder / "server.log"
    token = keys("new", "shop", "--file", file)
    write_trial_certificate(folder / "marking")
    own = {"FLEXI_MARKING_CERTIFICATE": str(folder / "marking" / CHAIN), "FLEXI_MARKING_KEY": str(folder / "marking" / KEY)}
    own |= {"FLEXI_REPEATS_MIB": "16", "FLEXI_WATCH_SECONDS": "0.2"}
    secrets = {"AWS_SECRET_ACCESS_KEY": "an-s3-secret", "AWS_ACCESS_KEY_ID": "an-s3-name"}
    settings = SETTINGS | own | secrets | {"FLEXI_REGISTRY": str(folder / "registry"), "FLEXI_API_KEYS": str(file)}
    with started(settings, log, patience=PATIENCE, host="0.0.0.0") as served:
        yield Guarded(served.address, file, token, log)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong-key"}, {"X-API-Key": "wrong-key"}])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/generate"), ("GET", "/v1/tiers"), ("GET", "/docs.json"), ("POST", "/")]
)
def test_nobody_gets_in_without_a_key(guarded, headers, method, path):
    reply = httpx.request(method, guarded.address + path, headers=headers, json=BODY if method == "POST" else None)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    error = reply.json()["error"]
    assert (error["code"], error["request_id"]) == ("unauthorized", reply.headers["x-request-id"])


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_opens(guarded, header):
    value = f"Bearer {guarded.token}" if header == "Authorization" else guarded.token
    reply = httpx.post(f"{guarded.address}/generate", json=BODY, headers={header: value}, timeout=120)
    assert reply.status_code == 200, reply.text


def test_bentoml_client_with_its_token(guarded):
    with bentoml.SyncHTTPClient(guarded.address, token=guarded.token, timeout=120) as client:
        assert client.generate(prompt=PROMPT, tier="reference")["images"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/", "/assets/ui.js"])
def test_probes_and_pages_need_no_key(guarded, path):
    assert httpx.get(guarded.address + path).status_code == 200


def test_openapi_says_how_to_come_in(guarded):
    document = httpx.get(f"{guarded.address}/docs.json", headers={"X-API-Key": guarded.token}).json()
    schemes = document["components"]["securitySchemes"]
    assert {name for way in document["security"] for name in way} == set(schemes) == {"bearer", "header"}


def test_keys_come_and_go_while_it_runs(guarded):
    token = keys("new", "guest", "--file", guarded.keys)
    assert guarded.comes_to(token, 200)
    good = guarded.keys.read_text()
    guarded.keys.write_text("{")
    until = time.monotonic() + 60
    while "the API keys stay as they were" not in guarded.log.read_text():
        assert guarded.status(token) == 200, "a broken file took the keys away"
        assert time.monotonic() < until, "the broken file was not seen"
        time.sleep(0.2)
    assert guarded.status(token) == 200
    guarded.keys.write_text(good)
    keys("revoke", "guest", "--file", guarded.keys)
    assert guarded.comes_to(token, 401)
    assert guarded.status(guarded.token) == 200


def read(file: bytes, name: str) -> tuple[str, str]:
    """(whether the mark holds, what all of it says), by the C2PA library's reader."""
    reader = c2pa.Reader(f"image/{name}", io.BytesIO(file))
    return reader.get_validation_state(), reader.json()


def metric(server: Guarded, name: str) -> float:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_what_a_key_had_made_is_answered_to_it_again_for_nothing_on_every_route_and_to_nobody_else(guarded):
    mine = {"X-API-Key": guarded.token}
    body = BODY | {"seed": 1001}
    first = httpx.post(f"{guarded.address}/generate", json=body, headers=mine, timeout=120)
    assert (first.json()["repeats"], "x-flexi-repeats" in first.headers) == ([], False)
    computed, saved = metric(guarded, "flexi_macs_total"), metric(guarded, "flexi_repeat_macs_total")
    again = httpx.post(f"{guarded.address}/generate", json=body, headers=mine, timeout=120)
    assert (again.json()["repeats"], again.json()["macs"], again.headers["x-flexi-repeats"]) == ([0], 0, "1")
    pixels = [np.asarray(Image.open(io.BytesIO(b64decode(one.json()["images"][0])))) for one in (first, again)]
    assert (pixels[0] == pixels[1]).all()

    openai = {**body, "n": 2, "response_format": "b64_json"}
    two = httpx.post(f"{guarded.address}/v1/images/generations", json=openai, headers=mine, timeout=120).json()
    assert (two["repeats"], two["macs"]) == ([0], first.json()["macs"])
    del openai["response_format"]
    with httpx.stream(
        "POST", f"{guarded.address}/v1/images/generations", json={**openai, "stream": True}, headers=mine, timeout=120
    ) as stream:
        assert stream.headers["x-flexi-repeats"] == "2"
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [(event["repeat"], event["macs"]) for event in events] == [(True, 0)] * 2
    assert all(read(b64decode(event["b64_json"]), "png")[0] == "Valid" for event in events)
    assert metric(guarded, "flexi_macs_total") == computed + first.json()["macs"], "of the second image"
    assert metric(guarded, "flexi_repeat_macs_total") == saved + 4 * first.json()["macs"]

    other = keys("new", "other", "--file", guarded.keys)
    assert guarded.comes_to(other, 200)
    theirs = httpx.post(f"{guarded.address}/generate", json=body, headers={"X-API-Key": other}, timeout=120).json()
    assert (theirs["repeats"], theirs["macs"]) == ([], first.json()["macs"])


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_images_leave_with_the_operators_mark_and_no_prompt_in_it(guarded, name):
    body = BODY | {"seed": 1001, "output_format": name, "response_format": "url"}
    answer = httpx.post(f"{guarded.address}/generate", json=body, headers={"X-API-Key": guarded.token}, timeout=120).json()
    assert answer["marked"]
    state, said = read(httpx.get(answer["images"][0]).content, name)
    assert (state, answer["schedule"] in said, PROMPT in said) == ("Valid", True, False)
    assert metric(guarded, "flexi_marking_certificate_expiry_timestamp_seconds") > time.time()
    assert metric(guarded, 'flexi_marked_files_total{outcome="ok"}') > 0


def test_jobs_have_marked_images_and_repeats_too(guarded):
    mine = {"X-API-Key": guarded.token}
    job = httpx.post(f"{guarded.address}/v1/jobs", json={"body": BODY | {"seed": 1001}}, headers=mine, timeout=60)
    assert job.status_code == 202, job.text
    until = time.monotonic() + 60
    while (state := httpx.get(f"{guarded.address}/v1/jobs/{job.json()['id']}", headers=mine).json())["state"] != "succeeded":
        assert time.monotonic() < until, state
        time.sleep(0.2)
    answer = state["result"]
    assert (answer["repeats"], answer["macs"], answer["marked"]) == ([0], 0, True)
    assert read(httpx.get(answer["images"][0]).content, "png")[0] == "Valid"


def test_the_log_names_the_key_and_tells_no_secret(guarded):
    """Over all that the tests above have asked, and bad requests, which quote what they got in their answers."""
    for bad in ({**BODY, "seed": PROMPT}, {**BODY, PROMPT: 1}, {**BODY, "tier": PROMPT}):
        headers = {"X-API-Key": guarded.token, "Content-Type": "application/json"}
        assert httpx.post(f"{guarded.address}/generate", json=bad, headers=headers).status_code in (400, 404)
    assert httpx.post(f"{guarded.address}/generate", content=f'{{"{PROMPT}', headers=headers).status_code == 400
    assert guarded.status(guarded.token) == 200
    log = guarded.log.read_text()
    assert '"key": "shop"' in log
    for secret in (PROMPT, guarded.token, sha256(guarded.token), "wrong-key", "an-s3-secret", "an-s3-name"):
        assert secret not in log
    assert guarded.token not in httpx.get(f"{guarded.address}/metrics").text
