"""The events that servers left in the registry's store."""

from __future__ import annotations

from collections.abc import Iterator

from registry.errors import Tampered
from registry.store import ObjectStore
from server.experiments import events
from server.experiments.events import Event

FEEDBACK, FIDELITY = "feedback", "fidelity"  # streams of a whole model: its experiments pick theirs by request id


def stream(name: str) -> str:
    """Where the outcomes of an experiment go."""
    return f"experiments/{name}/events"


def stored(store: ObjectStore, model: str, name: str, damaged: list[str]) -> Iterator[Event]:
    """All events that may belong to an experiment. A file that is damaged is left out from there on, and named in `damaged`."""
    for place in (stream(name), FEEDBACK, FIDELITY):
        for key in store.list(f"{model}/{place}/"):
            try:
                yield from events.read(key, store.get(key).data)
            except Tampered as error:
                damaged.append(error.message)
