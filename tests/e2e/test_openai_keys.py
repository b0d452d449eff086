"""The official openai client against a server that is still loading, asks for keys and is soon full."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import openai
import pytest
from api_keys import keys
from served import PATIENCE, SETTINGS, publish

from examples.launch import started
from registry.stores.address import open_store

SLOW = {"prompt": "red heart", "quality": "max", "n": 4}


@dataclass
class Guarded:
    """The server, two good keys, and what the first client was answered while it loaded."""

    address: str
    tokens: list[str]
    early: list[int] = field(default_factory=list)

    def client(self, token: str, seen: list[httpx.Response] | None = None, retries: int = 0) -> openai.OpenAI:
        """A client; what it is answered, tries that it makes by itself included, comes into `seen`."""
        hooks = {"response": [] if seen is None else [seen.append]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
        return openai.OpenAI(
            base_url=f"{self.address}/v1", api_key=token, max_retries=retries, http_client=http, timeout=PATIENCE
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Its registry is a file at first, which no server can work with; the first 503 makes a folder of it."""
    folder = tmp_path_factory.mktemp("busy")
    registry, file, port = folder / "registry", folder / "keys.json", free_port()
    registry.write_text("")
    tokens = [keys("new", name, "--file", file) for name in ("anna", "ben")]
    settings = {"FLEXI_REGISTRY": str(registry), "FLEXI_STATE": str(folder / "state"), "FLEXI_API_KEYS": str(file)}
    settings |= {"FLEXI_TEACHER_STEPS": "100", "FLEXI_MAX_QUEUE_SECONDS": "0.5"}
    guarded, seen = Guarded(f"http://127.0.0.1:{port}", tokens), []

    def first_request() -> None:
        guarded.client(tokens[0], seen, retries=200).models.list()

    def mend() -> None:
        while not any(reply.status_code == 503 for reply in seen):
            time.sleep(0.05)
        registry.unlink()
        publish(open_store(str(registry)))

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(work) for work in (first_request, mend)]
        with started(SETTINGS | settings, folder / "server.log", port=port, patience=PATIENCE):
            for work in waiting:
                work.result()
            guarded.early = [reply.status_code for reply in seen]
            yield guarded


def test_a_loading_server_is_asked_again(guarded):
    *before, last = guarded.early
    assert set(before) == {503}
    assert last == 200


def test_a_wrong_key(guarded):
    for call in (lambda api: api.models.list(), lambda api: api.images.generate(prompt="x")):
        with pytest.raises(openai.AuthenticationError) as refused:
            call(guarded.client("sk-wrong"))
        assert refused.value.code == "unauthorized"
        assert refused.value.request_id


def test_a_full_queue_is_tried_again_when_the_server_says(guarded):
    anna, ben = guarded.tokens
    with ThreadPoolExecutor() as pool:
        first = pool.submit(guarded.client(anna).images.generate, **SLOW)
        wait_until_running(guarded)
        with pytest.raises(openai.RateLimitError) as refused:
            guarded.client(ben).images.generate(**SLOW)
        assert refused.value.code == "overloaded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        plain = httpx.post(f"{guarded.address}/generate", json={"prompt": "x", "num_images": 4}, headers={"X-API-Key": ben})
        assert (plain.status_code, plain.json()["error"]["code"]) == (429, "overloaded")
        assert int(plain.headers["retry-after"]) >= 1
        seen, times = [], []
        patient = guarded.client(ben, seen, retries=100)
        patient._client.event_hooks["response"].append(lambda _: times.append(time.monotonic()))
        assert len(patient.images.generate(**SLOW).data) == 4
        assert len(first.result().data) == 4
    assert [reply.status_code for reply in seen] == [429] * (len(seen) - 1) + [200]
    assert len(seen) > 1, "the queue was never full"
    for reply, then, later in zip(seen, times, times[1:], strict=False):
        assert later - then >= int(reply.headers["retry-after"])


def test_nobody_else_can_cancel_a_request(guarded):
    anna, ben = guarded.tokens
    mine = {"X-Request-Id": "mine"}

    def cancel(token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.delete(f"{guarded.address}/v1/requests/mine", headers=headers, timeout=PATIENCE)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(guarded.client(anna).images.generate, **SLOW, extra_headers=mine)
        wait_until_running(guarded)
        assert cancel(ben).status_code == 404
        assert cancel(anna).json() == {"cancelled": 1}
        with pytest.raises(openai.ConflictError) as stopped:
            running.result()
    assert stopped.value.code == "cancelled"


def wait_until_running(guarded: Guarded) -> None:
    until = time.monotonic() + 60
    while "flexi_inflight_images 4.0" not in httpx.get(f"{guarded.address}/metrics", timeout=PATIENCE).text:
        assert time.monotonic() < until, "it was never running"
        time.sleep(0.02)
