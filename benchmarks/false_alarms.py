"""python -m benchmarks.false_alarms: false alarms under continuous peeking and units needed, by simulation.

Every simulated experiment is looked at after each of its requests, from the minimum sample on. The figures of
docs/experiments.md come from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from registry.commands.command_line import run_command
from registry.experiments.declaration import Arm, Experiment, Guardrail, Primary, RampStage
from server.experiments.analysis import statistics
from server.experiments.analysis.statistics import Array, Moments
from server.experiments.guardrails import GuardrailMonitor

ALPHA = 0.05
Values = Callable[[np.random.Generator, Array], Array]


def lognormal(cv: float) -> Values:
    """Positive values with mean 1 and this coefficient of variation."""
    sigma = math.sqrt(math.log1p(cv**2))
    return lambda dice, units: dice.lognormal(-(sigma**2) / 2, sigma, units.shape)


def of_units(cv: float, within: Values) -> Values:
    """Values of units that differ: each is `within` times its unit's own factor, lognormal with mean 1 and this variation."""
    own = lognormal(cv)
    return lambda dice, units: own(dice, np.empty(units.max() + 1))[units] * within(dice, units)


def pareto(shape: float) -> Values:
    """Lomax values with mean 1: for a shape of 3 or less the third moment is infinite."""
    return lambda dice, units: dice.pareto(shape, units.shape) * (shape - 1)


def errors(share: float) -> Values:
    """Zeros and ones, where units have a share of errors of their own, beta distributed around this one."""
    return lambda dice, units: (
        dice.random(units.shape) < dice.beta(share * 20, (1 - share) * 20, units.max() + 1)[units]
    ).astype(float)


@dataclass(frozen=True)
class Traffic:
    """What traffic is like. `activity` is the Pareto shape of how often units come, None where each comes once.

    `effect` multiplies the values of the second arm; 1 is an A/A experiment.
    """

    name: str
    values: Values
    weights: tuple[int, int] = (1, 1)
    requests: int = 5000
    population: int = 1000
    activity: float | None = None
    shares: bool = False
    scale: float = 0.05
    minimum_units: int = 200
    effect: float = 1.0

    def stream(self, dice: np.random.Generator) -> tuple[Array, Array, Array]:
        """One experiment's requests: their units, arms (0 or 1) and values, each (requests,)."""
        if self.activity is None:
            units = np.arange(self.requests)
        else:
            rate = dice.pareto(self.activity, self.population) + 0.1
            units = dice.choice(self.population, self.requests, p=rate / rate.sum())
        arms = (dice.random(units.max() + 1) < self.weights[1] / sum(self.weights))[units].astype(int)
        values = self.values(dice, units)
        return units, arms, np.where(arms == 1, values * self.effect, values)


def moments_so_far(units: Array, values: Array, in_arm: Array) -> Moments:
    """An arm's moments after each request of the stream, each (requests,): what the report would have seen then.

    When unit u brings one more value x, n² grows by 2n + 1, s² by 2sx + x², and n·s by nx + s + x.
    """
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    lengths = np.diff(starts, append=len(units))
    n, s = np.empty(len(units)), np.empty(len(units))
    before = np.cumsum(values[order]) - values[order]
    n[order] = np.arange(len(units)) - np.repeat(starts, lengths)
    s[order] = before - np.repeat(before[starts], lengths)
    x = values
    steps = (n == 0, np.ones_like(x), x, 2 * n + 1, 2 * s * x + x**2, n * x + s + x)
    return Moments(*(np.cumsum(np.where(in_arm, step, 0.0)) for step in steps))


def finds_effect(traffic: Traffic, control: Moments, arm: Moments) -> Array:
    """At which looks the interval excludes "no effect"."""
    if traffic.shares:
        effect, nothing = statistics.difference(control, arm, traffic.scale, ALPHA, shares=True), 0.0
    else:
        effect, nothing = statistics.ratio(control, arm, traffic.scale, ALPHA), 1.0
    return (effect.low > nothing) | (effect.high < nothing)


def z_test(control: Moments, arm: Moments) -> Array:
    """At which looks an ordinary 95 % interval of the difference, clustered by unit, excludes 0."""
    (was, v_was), (now, v_now) = statistics.mean(control), statistics.mean(arm)
    return np.abs(now - was) > stats.norm.ppf(1 - ALPHA / 2) * np.sqrt(v_was + v_now)


def by_request(moments: Moments, values: Array, in_arm: Array) -> Moments:
    """An arm's moments so far, with every request taken for a unit of its own."""
    squares = np.cumsum(np.where(in_arm, values**2, 0.0))
    return Moments(moments.n, moments.n, moments.s, moments.n, squares, moments.s)


def false_alarms(traffic: Traffic, experiments: int, seed: int = 0) -> dict[str, float]:
    """Shares of A/A experiments in which some look found an effect: ours, the ordinary interval, ours by request.

    `mismatch` is the share in which some look's chi-squared test cried sample ratio mismatch.
    """
    dice = np.random.default_rng(seed)
    alarms = dict.fromkeys(("sequence", "z test", "by request", "mismatch"), 0)
    for _ in range(experiments):
        units, arms, values = traffic.stream(dice)
        control, arm = moments_so_far(units, values, arms == 0), moments_so_far(units, values, arms == 1)
        ready = np.minimum(control.units, arm.units) >= traffic.minimum_units
        alone = by_request(control, values, arms == 0), by_request(arm, values, arms == 1)
        alarms["sequence"] += bool((finds_effect(traffic, control, arm) & ready).any())
        alarms["z test"] += bool((z_test(control, arm) & ready).any())
        alarms["by request"] += bool((finds_effect(traffic, *alone) & ready).any())
        p = statistics.sample_ratio(np.stack([control.units, arm.units])[:, ready], traffic.weights)
        alarms["mismatch"] += bool((p < statistics.MISMATCH).any())
    return {name: count / experiments for name, count in alarms.items()}


def units_needed(traffic: Traffic, experiments: int, power: float = 0.8, seed: int = 0) -> float:
    """Units in each arm by when this share of experiments with an effect has found it; infinite if fewer do."""
    dice = np.random.default_rng(seed)
    needed = np.full(experiments, np.inf)
    for i in range(experiments):
        units, arms, values = traffic.stream(dice)
        control, arm = moments_so_far(units, values, arms == 0), moments_so_far(units, values, arms == 1)
        smaller = np.minimum(control.units, arm.units)
        hits = np.flatnonzero(finds_effect(traffic, control, arm) & (smaller >= traffic.minimum_units))
        if hits.size:
            needed[i] = smaller[hits[0]]
    return float(np.quantile(needed, power, method="higher"))


def guard_trips(guardrail: Guardrail, experiments: int, requests: int, harm: float = 1.0, seed: int = 0) -> Array:
    """After how many requests of the arm a guardrail trips in each simulated experiment; infinite where it does not.

    90/10 arms, service times lognormal (CV 1) times `harm` in the arm, one request a second, errors of 1 %.
    """
    dice, draw = np.random.default_rng(seed), lognormal(1.0)
    tripped = np.full(experiments, np.inf)
    for i in range(experiments):
        monitor, arm_requests = GuardrailMonitor(_experiment(guardrail)), 0
        arms, values = dice.random(requests) < 0.1, draw(dice, np.empty(requests))
        failed = dice.random(requests) < 0.01
        for second, (arm, value, fails) in enumerate(zip(arms.tolist(), values.tolist(), failed.tolist(), strict=True)):
            arm_requests += arm
            name, factor = ("arm", harm) if arm else ("control", 1.0)
            checks = monitor.observe(float(second), name, {"service_p95": value * factor, "errors": float(fails)})
            if any(check.trips for check in checks):
                tripped[i] = arm_requests
                break
    return tripped


def _experiment(guardrail: Guardrail) -> Experiment:
    return Experiment(
        name="simulated",
        version=1,
        hypothesis="None.",
        tier="simulated",
        arms=(Arm(name="control", digest="0" * 64, weight=9), Arm(name="arm", digest="1" * 64, weight=1)),
        control="control",
        salt="simulated",
        ramp=(RampStage(share=100),),
        primary=Primary(metric="service_seconds", minimal_effect=0.05),
        guardrails=(guardrail,),
        maximum_units=10**6,
        end=datetime.max.replace(tzinfo=UTC),
    )


AA_TRAFFIC = (
    Traffic("each request a unit, CV 0.5", lognormal(0.5)),
    Traffic("each request a unit, CV 2, 20 %", lognormal(2), scale=0.2),
    Traffic("third moment infinite, 20 %", pareto(2.5), scale=0.2),
    Traffic("units come unequally often and differ, 10 %", of_units(0.5, lognormal(0.5)), activity=1.5, scale=0.1),
    Traffic("the same, heavy-tailed, 30 %", of_units(1.0, pareto(2.5)), activity=1.2, scale=0.3),
    Traffic("arms 90/10", lognormal(0.5), weights=(9, 1), requests=10_000),
    Traffic("arms 90/10, third moment infinite, 20 %", pareto(2.5), weights=(9, 1), requests=10_000, scale=0.2),
    Traffic("arms 90/10, units unequal, heavy-tailed, 20 %", of_units(0.5, pareto(2.5)), (9, 1), 10_000, 4000, 1.5, scale=0.2),
    Traffic("errors of 1 %, within 1 point", errors(0.01), activity=3.0, population=5000, shares=True, scale=0.01),
)
UNIT_CVS = (0.3, 0.5, 1.0)
GUARDRAILS = (
    Guardrail(metric="service_p95", compare="ratio", limit=1.5),
    Guardrail(metric="service_p95", compare="ratio", limit=1.25),
    Guardrail(metric="errors", compare="difference", limit=0.05),
    Guardrail(metric="errors", compare="difference", limit=0.02),
)


def main(
    experiments: Annotated[int, typer.Option(min=1, help="Simulated experiments of each kind.")] = 2000,
    seed: Annotated[int, typer.Option(help="The seed of all random numbers.")] = 0,
) -> None:
    """False alarms under continuous peeking, and the units that a 5 % effect takes. A few minutes.

    Exit code 1 when some traffic gave more false alarms than alpha.
    """
    table = Table("A/A experiments", "sequence", "z test", "by request", "mismatch", title=f"{experiments} experiments each")
    worst = 0.0
    for traffic in AA_TRAFFIC:
        alarms = false_alarms(traffic, experiments, seed)
        table.add_row(traffic.name, *(f"{share:.2%}" for share in alarms.values()))
        worst = max(worst, alarms["sequence"])
    Console(width=120).print(table)
    table = Table("CV of unit means", "units an arm, 80 %", "fixed sample", title="A 5 % effect")
    for cv in UNIT_CVS:
        fixed = 2 * (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(0.8)) ** 2 * (cv / 0.05) ** 2
        traffic = Traffic("", lognormal(cv), requests=max(4000, int(150 * (cv / 0.05) ** 2)), effect=1.05)
        table.add_row(f"{cv}", f"{units_needed(traffic, experiments, seed=seed):.0f}", f"{fixed:.0f}")
    Console(width=120).print(table)
    few = max(1, experiments // 4)
    table = Table("guardrail", "trips on A/A", title=f"{few} experiments of 10,000 requests, 90/10, three checks of 50")
    for guardrail in GUARDRAILS:
        trips = np.isfinite(guard_trips(guardrail, few, 10_000, seed=seed)).mean()
        table.add_row(f"{guardrail.metric} {guardrail.compare} {guardrail.limit:g}", f"{trips:.2%}")
    Console(width=120).print(table)
    if worst > ALPHA:
        typer.echo(f"more false alarms than {ALPHA:.0%}: {worst:.2%}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
