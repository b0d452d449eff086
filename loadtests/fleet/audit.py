"""What the moves of years cost who makes the next one, and who reads them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import count as count_from
from pathlib import Path
from typing import NamedTuple

from loadtests.fleet.counted_store import CountedStore
from loadtests.mixes import MODEL, mixes
from registry.audit_trail import audited_moves
from registry.catalog import Catalog
from registry.stores.folder import FolderStore
from registry.writer import now


class Moves(NamedTuple):
    """alias: bytes of the document that servers read. The others: requests of S3, by method."""

    alias: int
    next_move: Counter[str]
    whole_audit: Counter[str]
    newest_twenty: Counter[str]


def moves(folder: Path, count: int) -> Moves:
    """Of a tier that was moved so many times."""
    store, began = CountedStore(FolderStore(folder)), now()
    hours = count_from(0)
    catalog = Catalog(store, MODEL.name, author="loadtests", clock=lambda: began + timedelta(hours=next(hours)))
    digests = [catalog.publish(schedule).digest for schedule in mixes()["partial"].schedules.values()]
    for number in range(count):
        catalog.promote("draft", digests[number % 2])
    store.reset()
    catalog.promote("draft", digests[count % 2])
    next_move = _reset(store)
    trail = audited_moves(catalog)
    assert len(trail) == count + 1, "a move is missing in the audit"
    whole = _reset(store)
    assert len(audited_moves(catalog, since=trail[-20].audit.time)) == 20
    newest = _reset(store)
    return Moves(len(store.get(f"{MODEL.name}/aliases/draft.json").data), next_move, whole, newest)


def _reset(store: CountedStore) -> Counter[str]:
    requests = store.requests.copy()
    store.reset()
    return requests
