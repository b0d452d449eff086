"""What a server sees of the registry while it follows it, as events for operators. It reads nothing of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from typing_extensions import override

from registry.experiments.declaration import ExperimentState
from registry.records import Alias
from registry.writer import now
from server.operator_events.event import OperatorEvent, of_absence, of_move, of_refusal, of_rollback
from server.tiers.observer import RegistryObserver

RECENT = timedelta(hours=1)  # before a server's start: what happened then is told, if no other server did
STALE = timedelta(minutes=5)  # without an answer of the registry


class RegistryEvents(RegistryObserver):
    """Of one model: its tiers' moves and refusals, its experiments' rollbacks, and a registry that does not answer."""

    def __init__(
        self, model: str, registry: str, tell: Callable[[OperatorEvent], None], clock: Callable[[], datetime] = now
    ) -> None:
        """`tell` may be called by any thread, at each look anew; it knows what it was told before."""
        self._model, self._registry, self._tell, self._clock = model, registry, tell, clock
        self._since = clock() - RECENT
        self._last = clock()

    @override
    def moved(self, alias: Alias) -> None:
        for number, move in enumerate(alias.history, alias.archived + 1):
            if move.time >= self._since:
                self._tell(of_move(self._model, alias, number, move))

    @override
    def refused(self, alias: Alias, reason: str) -> None:
        self._tell(of_refusal(self._model, alias, reason))

    @override
    def looked(self, answered: bool) -> None:
        time = self._clock()
        if answered:
            self._last = time
        elif time - self._last >= STALE:
            self._tell(of_absence(self._registry, self._last, time))

    @override
    def followed(self, state: ExperimentState) -> None:
        for number, entry in enumerate(state.history, 1):
            if entry.action == "roll_back" and entry.time >= self._since:
                self._tell(of_rollback(self._model, state, number, entry))
