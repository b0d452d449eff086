"""A server that everybody can reach: who gets in, who no longer does, and what its log says of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bentoml
import httpx
import pytest
from api_keys import keys
from served import PATIENCE, SETTINGS

from examples.launch import started
from server.access.key_file import sha256

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
    secrets = {"AWS_SECRET_ACCESS_KEY": "an-s3-secret", "AWS_ACCESS_KEY_ID": "an-s3-name"}
    settings = SETTINGS | secrets | {"FLEXI_REGISTRY": str(folder / "registry"), "FLEXI_API_KEYS": str(file)}
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
