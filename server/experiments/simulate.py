"""python -m server.experiments.simulate: false alarms under continuous peeking and units needed, by simulation.

Every simulated experiment is looked at after each of its requests, from the minimum sample on. The figures of
docs/experiments.md come from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from server.experiments import statistics
from server.experiments.statistics import Moments

ALPHA = 0.05
Array = NDArray[Any]
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
class World:
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
    minimum_units: int = 100
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


def running(units: Array, values: Array, mine: Array) -> Moments:
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
    return Moments(*(np.cumsum(np.where(mine, step, 0.0)) for step in steps))


def found(world: World, control: Moments, arm: Moments) -> Array:
    """At which looks the interval excludes "no effect"."""
    if world.shares:
        effect, nothing = statistics.difference(control, arm, world.scale, ALPHA, shares=True), 0.0
    else:
        effect, nothing = statistics.ratio(control, arm, world.scale, ALPHA), 1.0
    return np.asarray((effect.low > nothing) | (effect.high < nothing))


def z_test(control: Moments, arm: Moments) -> Array:
    """At which looks an ordinary 95 % interval of the difference, clustered by unit, excludes 0."""
    (was, v_was), (now, v_now) = statistics.mean(control), statistics.mean(arm)
    return np.asarray(np.abs(now - was) > stats.norm.ppf(1 - ALPHA / 2) * np.sqrt(v_was + v_now))


def by_request(moments: Moments, values: Array, mine: Array) -> Moments:
    """The same arm with every request taken for a unit of its own."""
    squares = np.cumsum(np.where(mine, values**2, 0.0))
    return Moments(moments.n, moments.n, moments.s, moments.n, squares, moments.s)


def false_alarms(world: World, experiments: int, seed: int = 0) -> dict[str, float]:
    """Shares of A/A experiments in which some look found an effect: ours, the ordinary interval, ours by request.

    `mismatch` is the share in which some look's chi-squared test cried sample ratio mismatch.
    """
    dice = np.random.default_rng(seed)
    alarms = dict.fromkeys(("sequence", "z test", "by request", "mismatch"), 0)
    for _ in range(experiments):
        units, arms, values = world.stream(dice)
        control, arm = running(units, values, arms == 0), running(units, values, arms == 1)
        ready = np.minimum(control.units, arm.units) >= world.minimum_units
        alone = by_request(control, values, arms == 0), by_request(arm, values, arms == 1)
        alarms["sequence"] += bool((found(world, control, arm) & ready).any())
        alarms["z test"] += bool((z_test(control, arm) & ready).any())
        alarms["by request"] += bool((found(world, *alone) & ready).any())
        p = statistics.sample_ratio(np.stack([control.units, arm.units])[:, ready], world.weights)
        alarms["mismatch"] += bool((p < statistics.MISMATCH).any())
    return {name: count / experiments for name, count in alarms.items()}


def units_needed(cv: float, effect: float, power: float, experiments: int, seed: int = 0) -> int | None:
    """Units in both arms together after which a share `power` of experiments has found an effect of this size, looking always.

    Each unit brings one request. None where the simulated stretch was too short.
    """
    dice, length = np.random.default_rng(seed), math.ceil(80 * (cv / effect) ** 2)
    world = World("power", lognormal(cv), requests=length, effect=1 + effect, scale=effect)
    stops = np.full(experiments, np.inf)
    for i in range(experiments):
        units, arms, values = world.stream(dice)
        control, arm = running(units, values, arms == 0), running(units, values, arms == 1)
        hits = np.flatnonzero(found(world, control, arm) & (np.minimum(control.units, arm.units) >= world.minimum_units))
        if len(hits):
            stops[i] = hits[0] + 1
    needed = float(np.quantile(stops, power, method="higher"))
    return int(needed) if math.isfinite(needed) else None


def units_of_one_look(cv: float, effect: float, power: float) -> int:
    """What an ordinary test at one time fixed beforehand would need in both arms together."""
    z = stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(power)
    return math.ceil(4 * (z * cv / effect) ** 2)


WORLDS = (
    World("one request each, latency", lognormal(0.5)),
    World("units of very unequal activity", of_units(0.3, lognormal(0.5)), activity=1.2),
    World("heavy tail, third moment infinite", pareto(3.0)),
    World("arms of 90 and 10", of_units(0.3, lognormal(0.5)), weights=(9, 1), population=4000, requests=10_000, activity=1.5),
    World("errors of 1 %", errors(0.01), activity=1.5, shares=True, scale=0.01),
)

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    experiments: Annotated[int, typer.Option(min=10, help="Simulated A/A experiments in each world.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of all dice.")] = 0,
) -> None:
    """False alarms of A/A experiments that are looked at after each request, and the units that an effect of 5 % takes."""
    console = Console(highlight=False, width=110)
    table = Table(title=f"False alarms in {experiments} A/A experiments each, alpha {ALPHA}", title_justify="left")
    for name in ("traffic", "this report", "z test, peeking", "by request", "sample ratio alarm"):
        table.add_column(name, justify="left" if name == "traffic" else "right")
    for world in WORLDS:
        alarms = false_alarms(world, experiments, seed)
        table.add_row(world.name, *(f"{share:.4f}" for share in alarms.values()))
    console.print(table)
    table = Table(title="Units in both arms for an effect of 5 %, power 0.8", title_justify="left")
    for name in ("coefficient of variation", "this report, always looking", "one look, fixed beforehand"):
        table.add_column(name, justify="right")
    for cv in (0.25, 0.5, 1.0):
        needed = units_needed(cv, 0.05, 0.8, min(experiments, 200), seed)
        table.add_row(f"{cv:g}", f"{needed:,}" if needed else "more", f"{units_of_one_look(cv, 0.05, 0.8):,}")
    console.print(table)


if __name__ == "__main__":
    app()
