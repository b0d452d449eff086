"""Every fault of S3, on the wire, against the real server and the real command line: one clear line, and no failed request."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from faulty import FaultyProxy, faulty_proxy, healthy, says, slow, truncated
from places import ROOT
from seaweed import S3Server

from engine.folder import Folder
from examples.launch import serving
from registry.catalog import Catalog
from registry.schedule import ModelRef, Schedule, Segment, Solver
from registry.signing import SigningKey
from registry.stores.s3 import S3Store

log = logging.getLogger(__name__)

MODEL = ROOT / "models" / "emoji64"
SETTINGS = {"FLEXI_MODEL": str(MODEL), "FLEXI_TEACHER_STEPS": "4", "FLEXI_WATCH_SECONDS": "0.3"}
PATIENCE = 400  # seconds, for a start on a busy machine
LONG = 30  # seconds: longer than any client here waits for an answer

Inject = Callable[[FaultyProxy], object]


def answers(fault) -> Inject:
    return lambda proxy: setattr(proxy, "fault", fault)


FAULTS: dict[str, tuple[Inject, str]] = {
    "connection refused": (FaultyProxy.close, r"no answer \(Could not connect.*check the network, FLEXI_S3_ENDPOINT"),
    "500": (answers(says(500, "InternalError")), r"the store has a fault of its own \(InternalError 500\)"),
    "slow down": (answers(says(503, "SlowDown")), r"the store asks for fewer requests at a time \(SlowDown 503\)"),
    "slow answers": (answers(slow(LONG)), r"no answer \(Read timeout"),
    "truncated bodies": (answers(truncated), r"broke off|no answer"),
    "expired credentials": (answers(says(400, "ExpiredToken")), r"does not accept these credentials: check .* expiry"),
    "wrong region": (answers(says(400, "AuthorizationHeaderMalformed")), r"another region: set AWS_REGION"),
    "missing bucket": (answers(says(404, "NoSuchBucket")), r"the bucket does not exist: create it"),
    "clock skew": (answers(says(403, "RequestTimeTooSkewed")), r"this machine's clock is wrong"),
    "access denied": (answers(says(403, "AccessDenied")), r"access denied: the credentials need s3:GetObject"),
}


@dataclass
class Site:
    """A bucket behind the proxy, a publisher who reaches it directly, and settings of servers that go through the proxy."""

    proxy: FaultyProxy
    publisher: Catalog
    key: SigningKey
    environment: dict[str, str]
    secret: str
    log: Path

    def promote(self, tier: str, *segments: Segment, sign: bool = True) -> Schedule:
        """Publish, sign and move the tier."""
        ref = ModelRef(name="emoji64", family="unet2d-condition", fingerprint=Folder(MODEL).fingerprint())
        solver = Solver(name="ddim", teacher_steps=4, spacing="trailing")
        schedule = Schedule(model=ref, solver=solver, segments=segments)
        self.publisher.publish(schedule)
        if sign:
            self.publisher.sign(schedule, self.key)
        self.publisher.promote(tier, schedule.digest)
        return schedule

    def cli(self, *arguments: str) -> subprocess.Popen[str]:
        """`python -m registry`, as somebody at a terminal runs it."""
        command = [sys.executable, "-m", "registry", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @contextmanager
    def serving(self, name: str) -> Iterator[httpx.Client]:
        """A server, and a client of it. A server's start clears its BENTOML_HOME of the metrics of any other."""
        self.log = self.log.with_name(f"{name}.log")
        environment = self.environment | {"BENTOML_HOME": str(self.log.with_suffix(".bentoml"))}
        with (
            serving(environment, self.log, patience=PATIENCE) as address,
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            yield client

    def said(self) -> list[str]:
        """The events in the server's log."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [json.loads(line)["event"] for line in lines]


@pytest.fixture(scope="module")
def site(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("faults")
    key, public = SigningKey.make(folder / "key.pem")
    with faulty_proxy(s3_server.endpoint) as proxy:
        environment = {
            **s3_server.environment(),
            **SETTINGS,
            "FLEXI_S3_ENDPOINT": proxy.endpoint,
            "FLEXI_REGISTRY": f"s3://{s3_server.bucket}/server-faults",
            "FLEXI_STATE": str(folder / "state"),
            "FLEXI_TRUSTED_KEYS": str(public),
        }
        publisher = Catalog(S3Store(s3_server.client(), s3_server.bucket, "server-faults"), "emoji64", author="test")
        made = Site(proxy, publisher, key, environment, s3_server.secret_key, folder / "server.log")
        made.promote("balanced", Segment(), Segment())
        yield made


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[httpx.Client]:
    """Of a server that runs through all the faults."""
    with site.serving("first") as client:
        yield client


def metric(client: httpx.Client, name: str) -> float:
    (value,) = re.findall(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(value)


def draw(client: httpx.Client, **fields: object) -> str:
    """Ask for an image; the digest of the schedule that made it."""
    reply = client.post("/generate", json={"prompt": "red heart", "seed": 1, "guidance_scale": 1, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["schedule"]


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def mended(client: httpx.Client) -> None:
    start = time.time()
    wait_for(lambda: metric(client, "flexi_registry_last_success_timestamp_seconds") > start, "the registry is not read again")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_fails_no_request(site: Site, client: httpx.Client, fault: str) -> None:
    inject, advice = FAULTS[fault]
    mended(client)
    digest = draw(client)
    errors, told, start = metric(client, "flexi_registry_errors_total"), len(site.said()), time.monotonic()
    inject(site.proxy)
    try:
        shell, drawn = site.cli("list"), 0
        while shell.poll() is None or metric(client, "flexi_registry_errors_total") == errors:
            assert time.monotonic() < start + 120, "the watch saw nothing"
            assert draw(client) == draw(client, tier=None, schedule=digest) == digest
            drawn += 2
        seconds = time.monotonic() - start
    finally:
        site.proxy.fault = healthy
        if inject is FaultyProxy.close:
            site.proxy.open()
    output, line = shell.communicate()
    assert (shell.returncode, output, line.count("\n")) == (1, "", 1), line + output
    assert re.match(rf"error: registry: cannot \w+ s3://flexi/server-faults.* at {site.proxy.endpoint}: .*({advice})", line)
    warning = next(event for event in site.said()[told:] if event.startswith("the registry could not be read: "))
    assert re.search(advice, warning)
    mended(client)
    log.info("%s | %s | %s | %d requests, all 200, in %.0f s", fault, line.strip(), warning, drawn, seconds)
    for text in (line, site.log.read_text()):
        assert site.secret not in text
        assert "Traceback" not in text


def test_what_nobody_signed_is_refused_and_its_tier_stays(site: Site, client: httpx.Client) -> None:
    digest = draw(client)
    unsigned = site.promote("balanced", Segment(), Segment(partial=(1,), branch=1), sign=False)
    wait_for(lambda: 'flexi_tier_stale{tier="balanced"} 1.0' in client.get("/metrics").text, "nothing was refused")
    assert draw(client) == digest
    reply = client.post("/generate", json={"prompt": "red heart", "schedule": unsigned.digest})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "untrusted")
    assert any(f"{unsigned.digest}.json is not signed by a trusted key" in event for event in site.said())
    site.publisher.sign(unsigned, site.key)
    wait_for(lambda: draw(client) == unsigned.digest, "the signature is not seen")


def test_a_server_starts_with_s3_away_and_finds_back(site: Site, client: httpx.Client) -> None:
    mended(client)
    digest = draw(client)
    site.proxy.close()
    try:
        with site.serving("second") as late:
            assert draw(late) == digest
            assert metric(late, "flexi_registry_last_success_timestamp_seconds") < time.time() - 1
            assert any(event.startswith("the registry is away: serving what it said at ") for event in site.said())
            site.proxy.open()
            moved = site.promote("balanced", *[Segment()] * 4)
            wait_for(lambda: draw(late) == moved.digest, "the registry is not followed again")
    finally:
        site.proxy.close()
        site.proxy.open()
