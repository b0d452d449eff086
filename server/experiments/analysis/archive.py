"""The events that servers left in the registry's store."""

from __future__ import annotations

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


def stored_events(store: ObjectStore, model: str, state: ExperimentState, version: int, damaged: list[str]) -> Iterator[Event]:
    """All events that may belong to a version of an experiment: of the days since it was first started, in no order.

    A file that is damaged is left out from there on, and named in `damaged`.
    """
    starts = [entry.time for entry in state.history if (entry.action, entry.version) == ("start", version)]
    if not starts:
        return
    first_day = f"{starts[0] - SKEW:%Y-%m-%d}"
    prefixes = [f"{model}/{name}/" for name in (stream(state.name), FEEDBACK, FIDELITY)]
    keys = [key for prefix in prefixes for key in store.list(prefix) if _day(key) >= first_day]
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), AHEAD):
            batch = keys[start : start + AHEAD]
            for key, stored in zip(batch, pool.map(store.get, batch), strict=True):
                try:
                    yield from events.read(key, stored.data)
                except Tampered as error:
                    damaged.append(error.message)


def _day(key: str) -> str:
    """The day that a key is filed under: `…/<day>/<file>`."""
    return key.split("/")[-2]
