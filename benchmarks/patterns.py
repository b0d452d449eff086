"""python -m benchmarks.patterns MODEL: which even pattern of steps is best, and how well a few images tell.

The patterns are those that a search begins with, for each cost the dearest of every kind, at the best timesteps, with
corrections. Which is best is what many images of noise that decides nothing say, by rFID. Beside it stand rank correlations
(Spearman's ρ) of that with what a search has at hand: losses on four and on twelve images, as geometric and as arithmetic
means, and what the patterns are worth without corrections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from scipy.stats import spearmanr

from engine.loading import usual
from evaluation import bundled
from registry.commands.command_line import run_command
from registry.schedule import Schedule
from search_jobs.commands.options import guidance_scale
from search_jobs.config import JobConfig, Mean
from search_jobs.job import Job
from search_jobs.measurement import Measurement
from search_jobs.objective import Objective
from search_jobs.progress import ProgressBars
from search_jobs.search import ALIKE
from search_jobs.space import Space

BUDGETS = (1 / 12, 1 / 8, 1 / 5.1, 1 / 2.6)
MEANS: tuple[Mean, ...] = ("geometric", "arithmetic")
out, err = Console(width=110), Console(stderr=True)


class Pattern(NamedTuple):
    """A pattern with its figures on fresh images, and its losses on few, by what they are."""

    name: str
    fresh: Measurement
    losses: dict[str, float]


def main(
    model: Annotated[Path, typer.Argument(help="A diffusers pipeline folder.")],
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt or class a line.")] = None,
    features: Annotated[Path | None, typer.Option(help="As for a search.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Cost; repeat [default: 1/12, 1/8, 1/5.1, 1/2.6].")] = None,
    fresh_images: Annotated[int, typer.Option("--fresh", min=8, help="Images of noise that decides nothing.")] = 128,
    guidance: Annotated[float | None, typer.Option(help="Scale [default: the model's own].")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="A JSON file for every pattern's figures.")] = None,
) -> None:
    """Print a table of costs: how each of a search's ways to rank ranks, and the best patterns."""
    config = {
        "model": str(model), "prompts": str(prompts or ""), "features": str(features or bundled(model)), "tiers": {},
        "budgets": tuple(budget or BUDGETS), "guidance": guidance_scale(guidance, usual(model).guidance),
    }  # fmt: skip
    known = {}
    with TemporaryDirectory() as folder, ProgressBars(err) as bars:
        job = Job(JobConfig.parse(config), Path(folder), bars)
        fresh, space = job.evaluator.fresh(fresh_images), job.search(job.evaluations(job.executor())).space
        for cost, schedules in sorted(job.even().items(), reverse=True):
            bars.begin(f"patterns of at most {cost:.3f}", len(schedules) * fresh_images)
            known[cost] = list(measured(job, space, fresh, schedules))
    ways = list(next(iter(known.values()))[0].losses)
    out.print("| cost | patterns | ρ: " + ", ".join(ways) + " | the best three: rFID |\n" + "|---" * 4 + "|", soft_wrap=True)
    for cost, patterns in known.items():
        truth = [pattern.fresh.rfid for pattern in patterns]
        ranked = [f"{spearmanr([pattern.losses[way] for pattern in patterns], truth)[0]:.2f}" for way in ways]
        best = [f"{one.name} ({one.fresh.rfid:.3g})" for one in sorted(patterns, key=lambda one: one.fresh.rfid)[:3]]
        out.print(f"| {cost:.3f} | {len(patterns)} | {', '.join(ranked)} | {', '.join(best)} |", soft_wrap=True)
    if to:
        everything = {
            cost: [(one.name, one.fresh.document(), one.losses) for one in patterns] for cost, patterns in known.items()
        }
        to.write_text(json.dumps(everything, indent=1))


def measured(job: Job, space: Space, fresh: Objective, schedules: Sequence[Schedule]) -> Iterator[Pattern]:
    """Every pattern that the space holds, fitted on the search's images."""
    few, more = (job.evaluator.objective(stage) for stage in ("screen", "search"))
    for plain in schedules:
        genome = space.adopt(plain)
        if genome is None:
            continue
        retimed = space.schedule(space.retimed(genome, ALIKE))
        as_it_is = few.evaluate(plain).measurement
        losses = {f"as it is, {as_it_is.images}": as_it_is.loss}
        for mean in MEANS:
            few.mean = more.mean = mean  # its UNet calls are kept, so the second evaluation makes none
            fitted = [objective.evaluate(retimed, fitting=True) for objective in (few, more)]
            losses |= {f"{mean}, {one.measurement.images}": one.measurement.loss for one in fitted}
        counts, branches = plain.counts(), "".join(f" s={branch}" for branch in sorted(map(str, plain.branches)))
        yield Pattern(f"{counts['full']}+{counts['partial']}{branches}", fresh.evaluate(fitted[1].schedule).measurement, losses)
        job.progress.advance(len(fresh.noise))


if __name__ == "__main__":
    run_command(main)
