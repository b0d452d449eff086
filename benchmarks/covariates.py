"""python -m benchmarks.covariates: what covariates save an experiment, and that they raise no false alarms, by simulation.

Requests differ as a service's do: in images, sizes, guidance and hours. One covariate is as good a forecast of their work as
there can be. Each experiment is looked at whenever it has 5 % more requests than at the look before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from registry.commands.command_line import run_command
from server.experiments.analysis import adjustment, statistics
from server.experiments.analysis.adjustment import AdjustableArm

ALPHA = 0.05
EFFECT = 0.05  # relative: what an experiment cares about, and what `units_needed` is of
GROWTH = 1.05  # of the requests from one look to the next
FEWEST = 200  # units of an arm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MixedTraffic:
    """Requests whose work is images × rows × pixels, times noise of variation `noise`, beside a constant part.

    `images` are the shares of requests for 1, 2, … images. `returning`: units bring several requests, each drawn anew but for
    the unit's own `sameness`, the share of later requests that ask for what the first one did.
    """

    name: str
    images: tuple[float, ...] = (1.0,)
    sizes: tuple[float, ...] = (1.0,)
    unguided: float = 0.0
    noise: float = 0.25
    returning: float = 1.0
    sameness: float = 0.5
    requests: int = 12_000

    def experiment(self, dice: np.random.Generator, effect: float = 1.0) -> SimulatedRequests:
        """One experiment's requests in the order in which they come."""
        n = self.requests
        units = np.arange(n) if self.returning == 1 else dice.integers(0, int(n / self.returning), n)
        _, first, units = np.unique(units, return_index=True, return_inverse=True)
        kind = np.stack(
            [
                dice.choice(len(self.images), n, p=self.images) + 1.0,
                dice.choice(self.sizes, n),
                2.0 - (dice.random(n) < self.unguided),
            ],
            axis=1,
        )
        again = dice.random(n) < self.sameness
        kind = np.where(again[:, None], kind[first][units], kind)
        hour = 2 * np.pi * dice.random(n)
        work = 0.1 + kind.prod(axis=1)
        sigma = np.sqrt(np.log1p(self.noise**2))
        seconds = work * (1 + 0.2 * np.sin(hour)) * dice.lognormal(-(sigma**2) / 2, sigma, n)
        arms = (dice.random(len(first)) < 0.5)[units]
        x = np.column_stack([kind, work, np.sin(hour), np.cos(hour), np.zeros(n)])
        return SimulatedRequests(units, arms, np.where(arms, seconds * effect, seconds), x[first][units])


class SimulatedRequests(NamedTuple):
    """By request: its unit, whether it is of the arm, its seconds, and its unit's covariates (requests, p)."""

    units: NDArray[np.int64]
    arms: NDArray[np.bool_]
    seconds: Array
    x: Array


class Found(NamedTuple):
    """What one look saw: units of the smaller arm, plain and adjusted gain with intervals, as (low, high) ratios."""

    units: int
    plain: tuple[float, float]
    adjusted: tuple[float, float]
    estimate: float
    saved: float


def looks(requests: SimulatedRequests, start: int = 2 * FEWEST) -> list[Found]:
    """What the report would have said, again and again."""
    found, times = list[Found](), int(math.log(len(requests.units) / start, GROWTH))
    for seen in [*(int(start * GROWTH**i) for i in range(times + 1)), len(requests.units)]:
        arms = [_arm(requests, seen, arm) for arm in (False, True)]
        fewest = min(arm.covariates.units for arm in arms)
        adjusted = adjustment.ratio(arms[0], arms[1], EFFECT, ALPHA)
        plain = statistics.ratio(arms[0].moments, arms[1].moments, EFFECT, ALPHA)
        if fewest < FEWEST or adjusted is None:
            continue
        effect = adjusted.effect
        found.append(
            Found(
                fewest,
                (float(plain.low), float(plain.high)),
                (float(effect.low), float(effect.high)),
                float(effect.estimate),
                adjusted.saved,
            )
        )
    return found


def _arm(requests: SimulatedRequests, seen: int, arm: bool) -> AdjustableArm:
    mine = requests.arms[:seen] == arm
    _, first, units = np.unique(requests.units[:seen][mine], return_index=True, return_inverse=True)
    counts, sums = np.bincount(units).astype(float), np.bincount(units, requests.seconds[:seen][mine])
    x = requests.x[:seen][mine][first]
    moments = statistics.moments(counts, sums)
    return AdjustableArm(moments, adjustment.covariate_moments(x), adjustment.products(counts, sums, x))


class Simulation(NamedTuple):
    """Shares of experiments without effect in which some look found one; the share of units saved; the mean estimate."""

    plain_alarms: float
    adjusted_alarms: float
    saved: float
    estimate: float
    error: float  # of the mean estimate


def simulate(traffic: MixedTraffic, experiments: int, effect: float = 1.0, seed: int = 0) -> Simulation:
    """Of experiments whose arm takes `effect` times as long: alarms are looks whose interval leaves that out."""
    dice, plain, adjusted, last = np.random.default_rng(seed), 0, 0, list[Found]()
    for _ in range(experiments):
        found = looks(traffic.experiment(dice, effect))
        plain += any(not look.plain[0] <= effect <= look.plain[1] for look in found)
        adjusted += any(not look.adjusted[0] <= effect <= look.adjusted[1] for look in found)
        last.append(found[-1])
    estimates = np.log([look.estimate / effect for look in last])
    saved = float(np.mean([look.saved for look in last]))
    error = float(estimates.std(ddof=1) / np.sqrt(experiments))
    return Simulation(plain / experiments, adjusted / experiments, saved, float(estimates.mean()), error)


def units_needed(traffic: MixedTraffic, experiments: int, power: float = 0.8, seed: int = 0) -> tuple[float, float]:
    """Units in each arm by when this share of experiments has found a 5 % effect, plain and adjusted; infinite if fewer do."""
    dice, plain, adjusted = np.random.default_rng(seed), [], []
    for _ in range(experiments):
        found = looks(traffic.experiment(dice, 1 + EFFECT))
        plain.append(next((look.units for look in found if look.plain[0] > 1), np.inf))
        adjusted.append(next((look.units for look in found if look.adjusted[0] > 1), np.inf))
    first, second = (float(np.quantile(units, power, method="higher")) for units in (plain, adjusted))
    return first, second


TRAFFIC = (
    MixedTraffic("one image of one size"),
    MixedTraffic("1 to 4 images", images=(0.6, 0.2, 0.05, 0.15)),
    MixedTraffic("1 to 4 images, two sizes, a fifth unguided", (0.6, 0.2, 0.05, 0.15), (1.0, 2.25), 0.2),
    MixedTraffic("the same, units of 4 requests, half of them alike", (0.6, 0.2, 0.05, 0.15), (1.0, 2.25), 0.2, returning=4.0),
)


def main(
    experiments: Annotated[int, typer.Option(min=2, help="Simulated experiments of each kind.")] = 500,
    seed: Annotated[int, typer.Option(help="The seed of all random numbers.")] = 0,
) -> None:
    """What covariates save, and what they cost in false alarms. Minutes. Exit code 1 where alarms exceed alpha."""
    table = Table("traffic", "alarms, plain", "alarms, adjusted", "units saved", "units an arm, plain", "adjusted",
                  title=f"{experiments} experiments each, looked at after each 5 % more requests")  # fmt: skip
    worst = 0.0
    for traffic in TRAFFIC:
        none, needed = simulate(traffic, experiments, seed=seed), units_needed(traffic, experiments, seed=seed)
        worst = max(worst, none.adjusted_alarms)
        shown = (f"{none.plain_alarms:.1%}", f"{none.adjusted_alarms:.1%}", f"{none.saved:.0%}", *(f"{n:.0f}" for n in needed))
        table.add_row(traffic.name, *shown)
    Console(width=140).print(table)
    if worst > ALPHA:
        typer.echo(f"more false alarms than {ALPHA:.0%}: {worst:.2%}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
