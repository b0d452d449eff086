"""Tells the registry which experiments this server has ended, so that all others end them too."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import JsonValue

from registry.errors import FlexiError
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import OVER, Action, Experiment
from server.experiments.guardrails import GuardrailCheck
from server.telemetry import metrics
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)


class EndReporter:
    """Roll-backs wait here until the registry takes them. One thread may add to them while another one reports."""

    def __init__(self, open_experiments: Callable[[], ExperimentCatalog]) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away."""
        self._open = open_experiments
        self._rollbacks: dict[tuple[str, int], tuple[Experiment, GuardrailCheck]] = {}  # by version; not reported yet
        self._faults = Faults(log)

    def roll_back(self, experiment: Experiment, trip: GuardrailCheck) -> None:
        """Remember that a guardrail tripped. Does not block."""
        self._rollbacks[experiment.name, experiment.version] = experiment, trip
        metrics.rollbacks_unreported.set(len(self._rollbacks))

    def report_rollbacks(self) -> None:
        """Tell the registry; what it does not take is reported again the next time. Blocks."""
        for version, (experiment, trip) in list(self._rollbacks.items()):
            if self._act(experiment, "roll_back", trip.sentence, dict(trip.evidence)):
                del self._rollbacks[version]
        metrics.rollbacks_unreported.set(len(self._rollbacks))

    def finish(self, experiment: Experiment) -> None:
        """Tell the registry that an experiment's time is over. Blocks."""
        self._act(experiment, "finish", "its end has come")

    def _act(self, experiment: Experiment, action: Action, reason: str, evidence: dict[str, JsonValue] | None = None) -> bool:
        """Whether nothing is left to do: it is done, or another one has ended this version. Else it must be tried again."""
        name, version = experiment.name, experiment.version
        try:
            self._open().act(name, action, reason, version=version, evidence=evidence)
        except FlexiError as error:
            if not self._is_over(experiment):
                text = f"the registry does not know yet: could not {action} the experiment {name} version {version}: {error}"
                self._faults.failed(f"{name} version {version}", text, logging.ERROR)
                return False
        self._faults.mended(f"{name} version {version}")
        return True

    def _is_over(self, experiment: Experiment) -> bool:
        try:
            state = self._open().state(experiment.name)
        except FlexiError:
            return False
        return state.version != experiment.version or state.status in OVER
