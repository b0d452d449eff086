"""How many requests each operation costs, at different sizes of a model. `pytest -s` prints the table."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memory_store import MemoryStore
from registry_stores import schedule_number
from seaweed import S3Server
from typer.testing import CliRunner

from registry.__main__ import app
from registry.catalog import Catalog
from registry.commands import options
from registry.records import Claim, Version
from registry.schedule import Schedule
from registry.stores.base import ObjectStore, Stored
from registry.stores.s3 import S3Store
from registry.writer import now

REAL = 25  # of the schedules, the newest, are documents; the others are only keys
NEW = schedule_number(2**40)
PROBES = 30  # more than a search for the newest version takes at 100,000


class Counting(MemoryStore):
    """Counts the requests that an S3 store would make: a list is one for every thousand keys."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()

    def get(self, key: str) -> Stored:
        self.requests["get"] += 1
        return super().get(key)

    def create(self, key: str, data: bytes) -> str:
        self.requests["create"] += 1
        return super().create(key, data)

    def swap(self, key: str, data: bytes, etag: str) -> str:
        self.requests["swap"] += 1
        return super().swap(key, data, etag)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        keys = list(super().list(prefix, after))
        self.requests["list"] += max(1, -(-len(keys) // 1000))
        return iter(keys)

    def folders(self, prefix: str) -> Iterator[str]:
        self.requests["folders"] += 1
        plain = MemoryStore()  # whose own walk is not what a bucket is asked for
        plain._objects = self._objects
        return plain.folders(prefix)


class CountingS3:
    """Counts what a client sends."""

    def __init__(self, client: Any) -> None:
        self.requests: Counter[str] = Counter()
        client.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: object) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1


def fill(store: ObjectStore, size: int) -> list[Schedule]:
    """So many versions of different schedules; returns those that are real, oldest first."""
    real = [schedule_number(number) for number in range(min(size, REAL))]
    for number in range(1, size + 1):
        one = real[number - 1 - size] if number > size - len(real) else None
        digest = one.digest if one else f"{number:064x}"
        store.create(f"emoji64/schedules/{digest}.json", one.document() if one else b"")
        store.create(f"emoji64/digests/{digest}.json", Claim(digest=digest, number=number, time=now()).document())
        version = Version(number=number, digest=digest, time=now(), author="ada", note="")
        store.create(f"emoji64/versions/{number:06d}.json", version.document())
    return real


def measure(store: ObjectStore, requests: Counter[str], size: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Requests of each operation, each by a process that has read nothing yet."""
    one = fill(store, size)[-2]
    Catalog(store, "emoji64").promote("fast", size)
    monkeypatch.setattr(options, "open_store", lambda _: store)

    def list_20() -> None:
        done = CliRunner().invoke(app, ["list", "--last", "20"])
        assert done.exit_code == 0, done.output

    operations: dict[str, Callable[[Catalog], object]] = {
        "resolve a tier": lambda catalog: catalog.resolve("fast"),
        "resolve a version": lambda catalog: catalog.resolve(size),
        "resolve a digest": lambda catalog: catalog.resolve(one.digest),
        "resolve the beginning of a digest": lambda catalog: catalog.resolve(one.digest[:10]),
        "rollback": lambda catalog: catalog.rollback("best"),
        "promote a version": lambda catalog: catalog.promote("fast", size - 1),
        "promote a digest": lambda catalog: catalog.promote("fast", one.digest),
        "publish again": lambda catalog: catalog.publish(one),
        "publish": lambda catalog: catalog.publish(NEW),
        "list --last 20": lambda catalog: list_20(),
    }
    for version in (size, size - 1):
        Catalog(store, "emoji64").promote("best", version)
    counts = {}
    for name, operation in operations.items():
        requests.clear()
        operation(Catalog(store, "emoji64"))
        counts[name] = requests.total()
    print(f"\n{type(store).__name__}, {size} schedules: {counts}")  # noqa: T201 - with -s
    return counts


def check(small: dict[str, int], large: dict[str, int]) -> None:
    """Flat, but for what looks for the newest version: that grows with the logarithm."""
    searching = {"publish", "list --last 20"}
    for name in small.keys() - searching:
        assert small[name] == large[name], name
    for name in searching:
        assert large[name] <= small[name] + PROBES, name
    for counts in (small, large):
        assert counts["resolve a digest"] == 1
        for way in ("a tier", "a version", "the beginning of a digest"):
            assert counts[f"resolve {way}"] == 2, way


def test_requests_stay_flat_up_to_100_000_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for size in (30, 1000, 100_000):
        store = Counting()
        counts.append(measure(store, store.requests, size, monkeypatch))
    check(counts[0], counts[1])
    check(counts[0], counts[2])


def test_requests_of_a_real_server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for size in (30, 300):
        client = s3_server.client()
        store = S3Store(client, s3_server.bucket, uuid.uuid4().hex)
        counts.append(measure(store, CountingS3(client).requests, size, monkeypatch))
    check(*counts)
