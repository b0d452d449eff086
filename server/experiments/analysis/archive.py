"""The events that servers left in the registry's store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from registry.errors import InvalidInput, Tampered
from registry.experiments.candidates import CandidateState
from registry.experiments.declaration import ExperimentState
from registry.stores.base import ObjectStore
from server.experiments import events
from server.experiments.events import FEEDBACK, FIDELITY, Event, OutcomeEvent, PairEvent, pair_stream, stream

READERS = 10  # reads at a time, as many as boto3 keeps connections
AHEAD = 64  # objects in memory
SKEW = timedelta(days=1)  # more than clocks differ by


def stored_events(
    store: ObjectStore, model: str, state: ExperimentState, version: int, damaged: list[str], most: int | None = None
) -> Iterator[Event]:
    """All events that may belong to a version of an experiment: of the days since it was first started, outcomes first.

    Of what was learned later, which is kept for the whole model, only what is of this version's requests: other experiments
    go on when it has ended. A file that is damaged is left out from there on, and named in `damaged`.
    most: events that are read, others' too. Raises `InvalidInput` past them.
    """
    starts = [entry.time for entry in state.history if (entry.action, entry.version) == ("start", version)]
    if not starts:
        return
    prefixes = [f"{model}/{name}/" for name in (stream(state.name), FEEDBACK, FIDELITY)]
    ids = set[str]()
    for read, event in enumerate(_since(starts[0], store, prefixes, damaged)):  # in the order of the prefixes
        if read == most:
            raise InvalidInput(
                f"more than {most:,} events of this model are as young as it, too many to be read", param=state.name
            )
        if isinstance(event, OutcomeEvent):
            if event.version == version:
                ids.add(event.request_id)
            yield event
        elif event.request_id in ids:
            yield event


def stored_pairs(store: ObjectStore, model: str, state: CandidateState, damaged: list[str]) -> Iterator[PairEvent]:
    """All pairs of a tier since its newest candidate was first declared, earlier ones of that day too; `damaged` as above."""
    for event in _since(state.since(), store, [f"{model}/{pair_stream(state.tier)}/"], damaged):
        if isinstance(event, PairEvent):
            yield event


def _since(start: datetime, store: ObjectStore, prefixes: Sequence[str], damaged: list[str]) -> Iterator[Event]:
    first_day = f"{start - SKEW:%Y-%m-%d}"
    keys = [key for prefix in prefixes for key in store.list(prefix) if _day(key) >= first_day]
    with ThreadPoolExecutor(READERS) as pool:
        for place in range(0, len(keys), AHEAD):
            batch = keys[place : place + AHEAD]
            for key, stored in zip(batch, pool.map(store.get, batch), strict=True):
                try:
                    yield from events.read(key, stored.data)
                except Tampered as error:
                    damaged.append(error.message)


def _day(key: str) -> str:
    """The day that a key is filed under: `…/<day>/<file>`."""
    return key.split("/")[-2]
