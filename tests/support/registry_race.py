"""Writers, each a process of its own, race on one alias: `python tests/support/registry_race.py ROUNDS [folder|s3]`.

Afterwards every promotion and every rollback that was reported as done is in the one history, once, and nothing else is; the
audit entries tell the same moves. Prints what it counted; exit code 1 and a traceback if it does not hold.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import cycle, pairwise
from pathlib import Path
from typing import NamedTuple

from registry_stores import Place, schedule_number

from registry.catalog import Catalog
from registry.errors import Conflict
from registry.records import Audit
from registry.verify import Verification

WRITERS = 8
ROLLBACK_EVERY = 5  # promotions


class WriterReport(NamedTuple):
    """How a writer fared: (reason, version) of the moves that were done, in its order; how many were refused."""

    done: list[tuple[str, int]]
    refused: int


def write(place: Place, writer: int, rounds: int) -> WriterReport:
    """Move the tier so many times to one or the other schedule of its own, and now and then roll back."""
    catalog, done, refused = Catalog(place.open(), "emoji64", author=f"writer {writer}"), [], 0
    for turn in range(rounds):
        reason = f"promotion {writer}.{turn}"
        for version in cycle((1 + 2 * writer, 2 + 2 * writer)):
            alias = catalog.promote("fast", version, reason)
            if alias.history[-1].reason == reason:  # else the tier was there already, and nothing was moved
                break
        done.append((reason, version))
        if turn % ROLLBACK_EVERY == ROLLBACK_EVERY - 1:
            reason = f"rollback {writer}.{turn}"
            try:
                done.append((reason, catalog.rollback("fast", reason).version))
            except Conflict:  # somebody else moved the tier meanwhile
                refused += 1
    return WriterReport(done, refused)


def race(place: Place, rounds: int) -> str:
    """So many promotions in all. Raises `AssertionError` if a move is lost, doubled or reported wrongly anywhere."""
    catalog = Catalog(place.open(), "emoji64")
    for number in range(2 * WRITERS):
        catalog.publish(schedule_number(number))
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(WRITERS) as pool:
        reports = pool.starmap(write, [(place, i, rounds // WRITERS) for i in range(WRITERS)])
    seconds = time.monotonic() - began

    history, done = catalog.history("fast"), [report.done for report in reports]
    assert sorted((move.reason, move.version) for move in history) == sorted(move for moves in done for move in moves)
    for i, moves in enumerate(done):
        assert [move.reason for move in history if move.author == f"writer {i}"] == [reason for reason, _ in moves]
    entries = [Audit.read(key, catalog.store.get(key).data) for key in catalog.store.list("emoji64/audit/")]
    entries.sort(key=lambda entry: entry.move)
    assert [entry.move for entry in entries] == list(range(1, len(history) + 1))
    assert [(entry.reason, entry.after.version, entry.time) for entry in entries] == [
        (move.reason, move.version, move.time) for move in history
    ]
    assert all(after.before == before.after for before, after in pairwise(entries))
    assert Verification(catalog).findings == []
    refused, promotions = sum(report.refused for report in reports), sum(move.action == "promote" for move in history)
    return (
        f"{WRITERS} writers, {promotions} promotions, {len(history) - promotions} rollbacks, {refused} rollbacks refused: "
        f"{len(history)} moves in one history, {len(entries)} audit entries; "
        f"alias {len(catalog.alias('fast').document())} bytes; {seconds:.1f} s"
    )


def main(rounds: int, kind: str) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(kind, race(Place.make(kind, folder, stack), rounds), flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
