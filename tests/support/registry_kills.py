"""Publishers are killed at random moments: `python tests/support/registry_kills.py KILLS [folder|s3]`.

After each kill every key that is there is whole and agrees with all others, versions have no gap, and the next publication
succeeds. Prints what was counted; exit code 1 and a traceback if it does not hold.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from registry_stores import Place, schedule_number

from registry.catalog import Catalog
from registry.records import Version
from registry.verify import Verification

SERIES = 50  # kills in one registry: each is followed by a look at everything that is there
PUBLICATIONS = 3  # how many a publisher could complete, at the most, before it is killed


def publish_for_ever(place: Place, first: int, ready: Connection) -> None:
    """Publish one schedule after the other and let a tier mean it, until the end."""
    catalog = Catalog(place.open(), "emoji64", author="victim")
    catalog.versions(1)  # the connection is open
    ready.send_bytes(b"")
    for number in count(first):
        version = catalog.publish(schedule_number(number), f"schedule {number}")
        catalog.promote("fast", version.number, f"schedule {number}")


def kill(place: Place, kills: int) -> str:
    """Kill so many publishers. Raises `AssertionError` if one of them left something wrong."""
    catalog, moments = Catalog(place.open(), "emoji64"), Counter[str]()
    longest = PUBLICATIONS * min(_seconds(catalog, 2**40 + i) for i in range(5))
    versions = catalog.versions()
    for turn in range(kills):
        first = 1000 * turn
        ready, theirs = multiprocessing.Pipe(duplex=False)
        victim = multiprocessing.get_context("fork").Process(target=publish_for_ever, args=(place, first, theirs))
        victim.start()
        ready.recv_bytes()
        time.sleep(random.uniform(0, longest))
        victim.kill()
        victim.join()
        assert victim.exitcode == -9

        moments += _check(catalog, versions)
        finished = {version.digest for version in catalog.versions()}
        cut_off = next(number for number in count(first) if schedule_number(number).digest not in finished)
        published = catalog.publish(schedule_number(cut_off), "the same, after the kill")
        assert published.number == catalog.version_log.newest() == len(catalog.versions())
        assert catalog.resolve(published.number).schedule == schedule_number(cut_off)
        catalog.promote("fast", published.number, "after the kill")
        assert not Verification(catalog).findings
        versions = catalog.versions()
    digests = [version.digest for version in versions]
    assert len(set(digests)) == len(digests)
    cut = ", ".join(f"{number} {moment}" for moment, number in moments.most_common())
    return f"{kills} kills, {len(versions)} versions without gap; cut off: {cut}"


def _seconds(catalog: Catalog, number: int) -> float:
    began = time.monotonic()
    catalog.promote("fast", catalog.publish(schedule_number(number)).number)
    return time.monotonic() - began


def _check(catalog: Catalog, before: list[Version]) -> Counter[str]:
    """What the kill left: no damage, all earlier versions as they were; at which moment it came."""
    verified = Verification(catalog)
    assert verified.damage == []
    versions = catalog.versions()
    assert versions[: len(before)] == before
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    for version in versions:
        assert catalog.schedule(version.digest).digest == version.digest
    schedules = sum(key.startswith("emoji64/schedules/") for key in verified.keys)
    if verified.findings:
        return Counter(
            ["before the audit entry" if "audit" in finding.key else "after the claim" for finding in verified.findings]
        )
    return Counter(["after the schedule" if schedules > len(versions) else "elsewhere"])


def main(kills: int, kind: str) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = Place.make(kind, folder, stack)
        for number in range(0, kills, SERIES):
            empty = replace(place, folder=folder / f"{number}", prefix=f"{number}")
            print(kind, kill(empty, min(SERIES, kills - number)), flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
