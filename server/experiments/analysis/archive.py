"""The events that servers left in the registry's store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from registry.errors import Tampered
from registry.experiments.declaration import ExperimentState
from registry.stores.base import ObjectStore
from server.experiments import events
from server.experiments.events import FEEDBACK, FIDELITY, Event, stream

READERS = 10  # reads at a time, as many as boto3 keeps connections
AHEAD = 64  # objects in memory
SKEW = timedelta(days=1)  # more than clocks differ by

_DAY = re.compile(r"/(\d{4}-\d\d-\d\d)/[^/]+$")


def stored(store: ObjectStore, model: str, state: ExperimentState, version: int, damaged: list[str]) -> Iterator[Event]:
    """All events that may belong to a version of an experiment: of the days since it was first started, in no order.

    A file that is damaged is left out from there on, and named in `damaged`.
    """
    started = [each.time for each in state.history if (each.action, each.version) == ("start", version)]
    if not started:
        return
    first = f"{started[0] - SKEW:%Y-%m-%d}"
    places = (f"{model}/{place}/" for place in (stream(state.name), FEEDBACK, FIDELITY))
    keys = [key for place in places for key in store.list(place) if (_day(key) or first) >= first]
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), AHEAD):
            some = keys[start : start + AHEAD]
            for key, found in zip(some, pool.map(store.get, some), strict=True):
                try:
                    yield from events.read(key, found.data)
                except Tampered as error:
                    damaged.append(error.message)


def _day(key: str) -> str | None:
    """The day that a key is filed under; None for one of before there were days."""
    found = _DAY.search(key)
    return found and found[1]
