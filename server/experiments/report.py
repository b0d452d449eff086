"""An experiment's report: read from the store, judged, and shown to people or scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.errors import Tampered
from registry.experiment import BY_RATIO, Experiment, ExperimentState, Metric
from registry.store import ObjectStore
from server.experiments import events, statistics
from server.experiments.events import Event
from server.experiments.judge import Compared, Verdict, compare, judge, mismatch
from server.experiments.summaries import Summary, summarize

METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Report:
    """What each arm did, and what follows. `effects` is by treatment and metric."""

    experiment: Experiment
    state: ExperimentState
    summaries: dict[str, Summary]
    effects: dict[str, dict[Metric, Compared]]
    sample_ratio_p: float
    verdict: Verdict
    damaged: list[str]

    @property
    def smallest_arm(self) -> int:
        """Units."""
        return min(summary.units for summary in self.summaries.values())

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "experiment": self.experiment.name,
            "version": self.experiment.version,
            "tier": self.experiment.tier,
            "status": self.state.status,
            "hypothesis": self.experiment.hypothesis,
            "primary": self.experiment.primary.model_dump(mode="json"),
            "alpha": self.experiment.alpha,
            "sample_ratio_p": self.sample_ratio_p if self.sample_ratio_p == self.sample_ratio_p else None,
            "arms": [
                {
                    "name": arm.name,
                    "schedule": arm.digest,
                    "control": arm.name == self.experiment.control,
                    "units": self.summaries[arm.name].units,
                    "requests": self.summaries[arm.name].requests,
                    "effects": {metric: found._asdict() for metric, found in self.effects.get(arm.name, {}).items()},
                }
                for arm in self.experiment.arms
            ],
            "decision": self.verdict.decision,
            "arm": self.verdict.arm,
            "reason": self.verdict.reason,
            "damaged": self.damaged,
        }


def report(store: ObjectStore, model: str, experiment: Experiment, state: ExperimentState, now: datetime) -> Report:
    """Reads every event of the experiment, ratings and fidelity. Files that are damaged are left out and named."""
    damaged: list[str] = []
    prefixes = (f"{model}/experiments/{experiment.name}/events/", f"{model}/feedback/", f"{model}/fidelity/")
    summaries = summarize(experiment, (event for prefix in prefixes for event in _read(store, prefix, damaged)))
    control, effects = summaries[experiment.control], dict[str, dict[Metric, Compared]]()
    for name in experiment.treatments:
        found = {metric: compare(experiment, metric, control, summaries[name]) for metric in METRICS}
        effects[name] = {metric: each for metric, each in found.items() if each}
    p = mismatch(experiment, summaries)
    return Report(experiment, state, summaries, effects, p, judge(experiment, summaries, now), damaged)


def print_report(made: Report, console: Console) -> None:
    """For people."""
    experiment = made.experiment
    console.print(
        Text.assemble(
            (f"{experiment.name} version {experiment.version}", "bold"), f", tier {experiment.tier}: {made.state.status}"
        )
    )
    console.print(Text(experiment.hypothesis, style="dim"))
    arms = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("arm", "schedule", "weight", "units", "requests"):
        arms.add_column(column, justify="left" if column in ("arm", "schedule") else "right")
    for arm in experiment.arms:
        summary = made.summaries[arm.name]
        name = f"{arm.name} (control)" if arm.name == experiment.control else arm.name
        arms.add_row(name, arm.digest[:8], str(arm.weight), str(summary.units), str(summary.requests))
    console.print(arms)
    share = "no units yet" if made.sample_ratio_p != made.sample_ratio_p else f"p = {made.sample_ratio_p:.3g}"
    alarm = " ALARM" if made.sample_ratio_p < statistics.MISMATCH else ""
    console.print(f"Sample ratio: {share} (alarm below {statistics.MISMATCH}){alarm}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("arm", "metric", "control", "arm's", "effect", f"{100 * (1 - experiment.alpha):g} %, at all times"):
        table.add_column(column, justify="left" if column in ("arm", "metric") else "right", no_wrap=True)
    for name, effects in made.effects.items():
        for metric, found in effects.items():
            primary = " *" if metric == experiment.primary.metric else ""
            table.add_row(name, metric + primary, f"{found.control:.4g}", f"{found.mean:.4g}", *_effect(metric, found))
    console.print(table)
    console.print(
        "* the primary metric, which decides. Effects: ratios of seconds and MACs, differences of the others.", style="dim"
    )
    for line in made.damaged:
        console.print(Text(f"left out: {line}", style="red"))
    verdict = made.verdict
    console.print(
        Text.assemble((verdict.decision + (f": {verdict.arm}" if verdict.arm else ""), "bold"), f". {verdict.reason}")
    )


def _effect(metric: Metric, found: Compared) -> tuple[str, str]:
    if metric in BY_RATIO:
        return f"×{found.effect:.3f}", f"{found.low:.3f} to {found.high:.3f}"
    return f"{found.effect:+.4g}", f"{found.low:+.4g} to {found.high:+.4g}"


def _read(store: ObjectStore, prefix: str, damaged: list[str]) -> Iterator[Event]:
    for key in store.list(prefix):
        try:
            yield from events.read(key, store.get(key).data)
        except Tampered as error:
            damaged.append(error.message)
