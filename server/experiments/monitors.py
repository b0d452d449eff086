"""The guardrail monitors of all experiments that split this server's traffic."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic

from registry.experiments.declaration import Experiment, Harm
from server.experiments.guardrails import GuardrailCheck, GuardrailMonitor
from server.telemetry import metrics

log = logging.getLogger(__name__)


class GuardrailMonitors:
    """One monitor for each version of an experiment that runs. One thread may follow while another one observes."""

    def __init__(self, *, shadowed: bool) -> None:
        """`shadowed`: whether any image is held against the teacher's, so that guardrails of its fidelity can see something."""
        self._shadowed = shadowed
        self._monitors: dict[tuple[str, int], GuardrailMonitor] = {}

    def follow(self, running: Iterable[Experiment]) -> None:
        """Begin to monitor what is new among these, go on with the others, and forget what does not run any more."""
        versions = {(experiment.name, experiment.version): experiment for experiment in running}
        self._monitors = {
            version: self._monitors.get(version) or self._begin(experiment) for version, experiment in versions.items()
        }

    def observe(self, experiment: Experiment, arm: str, values: dict[Harm, float]) -> GuardrailCheck | None:
        """Note what a request of an arm showed. The check that trips, if one does."""
        monitor = self._monitors.get((experiment.name, experiment.version))
        checks = monitor.observe(monotonic(), arm, values) if monitor else []
        for check in checks:
            metrics.guard_checks_total.labels(experiment.name, check.arm, check.guardrail.metric).inc()
        return next((check for check in checks if check.trips), None)

    def _begin(self, experiment: Experiment) -> GuardrailMonitor:
        if not self._shadowed and any(guardrail.metric == "psnr" for guardrail in experiment.guardrails):
            log.warning("the guardrail psnr of the experiment %s sees nothing here: FLEXI_SHADOW_SHARE is 0", experiment.name)
        return GuardrailMonitor(experiment)
