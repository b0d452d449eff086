"""What the figures should be: goals for any device, and those for an H100 with SD v1.5's sizes in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.engine.equality import CAPTURED, DEVICE, WAVES
from benchmarks.engine.host import SILENT, WAVE
from benchmarks.engine.result import FULL, OURS, TEACHER, BenchmarkResult, BenchmarkResults, partial_step
from benchmarks.engine.timing import Spread
from benchmarks.engine.workload import UNIFORM

COMPILED = ("diffusers, compiled",)
GUIDED = 2  # UNet rows of one image


@dataclass(frozen=True)
class Goal:
    """A bound, at most or at least, on a figure that follows from results; `measure` gives None where they are not there.

    card: whether it is for an H100 and the sizes of SD v1.5. Without `measure`, `elsewhere` says what measures it.
    """

    what: str
    bound: float
    at_most: bool = True
    card: bool = True
    measure: Callable[[BenchmarkResults], float | None] | None = None
    elsewhere: str = ""

    def judged(self, results: BenchmarkResults, device: str) -> GoalResult:
        """What these results come to. device: "cpu" or "cuda"; goals for a card are only judged on one."""
        value = self.measure(results) if self.measure and (device == "cuda" or not self.card) else None
        if value is None:
            return GoalResult(self, None, None)
        return GoalResult(self, value, value <= self.bound if self.at_most else value >= self.bound)


@dataclass(frozen=True)
class GoalResult:
    """A goal's figure, and whether it is met; None where it was not measured here."""

    goal: Goal
    value: float | None
    met: bool | None

    @property
    def said(self) -> str:
        """In one word or a few."""
        if self.met is None:
            return f"not measured here{f': {self.goal.elsewhere}' * bool(self.goal.elsewhere)}"
        return "met" if self.met else "missed"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        bound = {"at_most" if self.goal.at_most else "at_least": self.goal.bound}
        return {
            "what": self.goal.what,
            **bound,
            "card": self.goal.card,
            "value": self.value,
            "met": self.met,
            "said": self.said,
        }


def judged(results: BenchmarkResults, device: str) -> Iterator[GoalResult]:
    """All goals."""
    for goal in GOALS:
        yield goal.judged(results, device)


def _step_over_compiled(what: str) -> Callable[[BenchmarkResults], float | None]:
    """The time of our step, of one guided image, over compiled diffusers' for as many MACs: of its full step."""

    def measure(results: BenchmarkResults) -> float | None:
        ours, theirs = results.find("steps", what, GUIDED, OURS), results.find("steps", FULL, GUIDED, COMPILED)
        return ours.over(theirs, per_mac=True).median if ours and theirs else None

    return measure


def _over(section: str, what: str, count: int, theirs: str) -> Callable[[BenchmarkResults], float | None]:
    """The time of ours, as plain as theirs, over theirs."""

    def measure(results: BenchmarkResults) -> float | None:
        ours, other = results.find(section, what, count, ["ours"]), results.find(section, what, count, [theirs])
        return ours.over(other).median if ours and other else None

    return measure


def _efficiency(images: int, who: tuple[str, ...] = OURS) -> Callable[[BenchmarkResults], float | None]:
    """The speed-up over our own teacher by the clock, over that in MACs: the least of all schedules."""

    def measure(results: BenchmarkResults) -> float | None:
        teacher = results.find("generations", TEACHER, images, who)
        made = [results.find("generations", uniform.name, images, who) for uniform in UNIFORM[1:]]
        ratios = [teacher.over(one, per_mac=True).median for one in made if one] if teacher else []
        return min(ratios, default=None)

    return measure


def _host(results: BenchmarkResults) -> float | None:
    """Milliseconds."""
    found = results.find("host", WAVE, 32, ("ours, captured", SILENT))
    return 1e3 * Spread.of(found.values).median if found else None


def _tflops(results: BenchmarkResults) -> float | None:
    """Of eight guided images: waves of 16 rows."""
    found = results.find("generations", TEACHER, 8, OURS)
    return found.tflops if found else None


def _largest(what: str) -> Callable[[BenchmarkResults], float | None]:
    """The largest difference."""

    def measure(results: BenchmarkResults) -> float | None:
        found: list[BenchmarkResult] = [one for one in results if one.section == "equality" and one.what == what]
        return max((float(np.max(one.values)) for one in found), default=None)

    return measure


GOALS = (
    Goal("full step, 2 rows / unet(…), both eager", 1.0, card=False, measure=_over("steps", FULL, 2, "diffusers")),
    *(
        Goal(f"{what}, {rows} rows / DeepCache's", 0.9, card=False, measure=_over("steps", what, rows, "DeepCache"))
        for what in map(partial_step, (1, 2))
        for rows in (1, 8)
    ),
    *(
        Goal(f"speed-up by the clock / in MACs, eager, images: {images}", 0.97, False, False, _efficiency(images, ("ours",)))
        for images in (1, 8)
    ),
    Goal("host's part of a wave of 32 rows, ms", 0.5, card=False, measure=_host),
    Goal("waves − plain sampler, float32", 1e-5, card=False, measure=_largest(WAVES)),
    Goal("captured − eager waves of any size", 0.0, card=False, measure=_largest(CAPTURED)),
    Goal("guided full step of one image / compiled diffusers'", 1.0, measure=_step_over_compiled(FULL)),
    *(
        Goal(f"{what} / its share of MACs of compiled diffusers' full one", 1.05, measure=_step_over_compiled(what))
        for what in map(partial_step, (1, 3))
    ),
    *(
        Goal(f"speed-up by the clock / in MACs, images: {images}", 0.97, at_most=False, measure=_efficiency(images))
        for images in (1, 8)
    ),
    Goal("TFLOP/s in waves of 16 rows", 350, at_most=False, measure=_tflops),
    Goal("device − CPU, float32", 7e-6, measure=_largest(DEVICE)),
    Goal(
        "the service's images/s of 32 clients / the engine's", 0.9, at_most=False, elsewhere="python -m loadtests.peers --real"
    ),
    Goal("latency of an idle server's reference / compiled pipeline's", 1.05, elsewhere="python -m loadtests.peers --real"),
    Goal("latency of a tier / its share of MACs of that", 1.1, elsewhere="python -m loadtests.peers --real"),
)
