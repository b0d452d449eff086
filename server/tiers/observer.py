"""Who wants to know what a server sees of the registry while it follows it."""

from __future__ import annotations

from registry.experiments.declaration import ExperimentState
from registry.records import Alias


class RegistryObserver:
    """Does nothing. Each call is made by a thread that must not wait, and may be made again for what was seen before."""

    def moved(self, alias: Alias) -> None:
        """An alias was read, because it is new here or was moved."""

    def refused(self, alias: Alias, reason: str) -> None:
        """What an alias means now cannot come into force."""

    def looked(self, answered: bool) -> None:
        """A look at the registry is over; whether it could be read."""

    def followed(self, state: ExperimentState) -> None:
        """The state of an experiment was read, because it is new here or has changed."""
