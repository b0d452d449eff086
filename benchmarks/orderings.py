"""python -m benchmarks.orderings MODEL: which reuse harms a transformer less, and whether that is as published.

All schedules walk the same trajectory, so what they differ in is what their partial steps reuse. Of each: its cost, the squared
error of its images to those of all full steps, as PSNR, and that error over the first row's of its table, with a paired 95 %
interval. What is looked at: the interval between full steps; reuse against fewer steps at equal MACs; how many blocks are
computed at the front; the front against the back, in the first or the second half of the trajectory (arXiv 2406.01125 caches
rear blocks early and front blocks late).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.forecast.forecasts import Recipe
from benchmarks.paper.images import ImageStore
from benchmarks.paper.subject import Subject
from engine.branches import BlockPairs
from engine.loading import load
from engine.model import Model
from evaluation import extractor, psnr
from evaluation.paired import Resampled, resampled
from registry.commands.command_line import command_line
from registry.errors import Unsupported
from registry.schedule import Blocks, Branch, Schedule, Segment
from search_jobs.evaluator import prompts_of
from search_jobs.stages import fresh

SEED = 6  # of noise
EVERY = 3  # the interval where another thing is looked at
app = command_line(help=__doc__ or "")


@dataclass(frozen=True)
class WholeTimesteps:
    """Steps of a model's plain solver, at whole timesteps so that a schedule can name them."""

    model: Model
    steps: int

    def reusing(self, full: Sequence[int], branch: Branch) -> Schedule:
        """All steps, those of these indices full and the others partial."""
        gaps = [after - at for at, after in pairwise([*full, self.steps])]
        solver = self.model.solver(self.model.levels.plain_solver, self.steps)
        timesteps = tuple(self.model.levels.trajectory(solver).timesteps.round().astype(int).tolist())
        return Schedule(
            model=self.model.ref,
            solver=solver.model_copy(update={"teacher_steps": len(gaps) * max(gaps)}),
            segments=tuple(Segment.reusing(branch, tuple(range(1, gap))) for gap in gaps),
            timesteps=timesteps,
        )

    def every(self, interval: int, branch: Branch, part: range | None = None) -> Schedule:
        """A full step in so many, in a part of the trajectory or in all of it."""
        inside = range(self.steps) if part is None else part
        return self.reusing([i for i in range(self.steps) if i not in inside or (i - inside.start) % interval == 0], branch)

    def fewer(self, steps: int) -> Schedule:
        """So many full steps, at timesteps of their own."""
        return WholeTimesteps(self.model, steps).every(1, 0)


def tables(walked: WholeTimesteps, blocks: int) -> Mapping[str, Mapping[str, Schedule]]:
    """What is looked at, and the schedules that show it, by name."""
    steps = walked.steps
    halves = {"first half": range(steps // 2), "second half": range(steps // 2, steps)}
    fronts = [front for front in (0, 1, 2, 4, 6, 8, 10) if front < blocks]
    sides = [(n, pair) for n in (2, 4, 8) if n < blocks for pair in (Blocks(n, 0), Blocks(0, n), Blocks(n // 2, n // 2))]
    return {
        "full steps one in 2, 3, 5": {
            f"one in {n}, {pair}": walked.every(n, pair) for pair in (Blocks(0, 0), Blocks(1, 0)) for n in (2, 3, 5)
        },
        "reuse, and as many full steps without it": {
            name: schedule
            for n in (2, 3, 5)
            for name, schedule in {
                f"one in {n}, 0+0": walked.every(n, Blocks(0, 0)),
                f"{steps // n} full steps": walked.fewer(steps // n),
            }.items()
        },
        f"blocks at the front, one full step in {EVERY}": {f"{n}+0": walked.every(EVERY, Blocks(n, 0)) for n in fronts},
        **{
            f"{n} blocks, one full step in {EVERY} of the {half}": {
                str(pair): walked.every(EVERY, pair, part) for count, pair in sides if count == n
            }
            for half, part in halves.items()
            for n in sorted({count for count, _ in sides})
        },
    }


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="A transformer's folder, with features beside its weights.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Where measurements are kept.")] = Path(".flexi/orderings"),
    images: Annotated[int, typer.Option(min=8)] = 32,
    steps: Annotated[int, typer.Option(min=10, help="A multiple of 30 is one of all intervals.")] = 60,
    guidance: float | None = None,
) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    subject, loaded = Subject.of(model, guidance=guidance), load(model)
    branches = loaded.network.branches
    if not isinstance(branches, BlockPairs):
        raise Unsupported("is no transformer", param="model")
    walked = WholeTimesteps(loaded, steps)
    teacher = walked.every(1, 0)
    store = ImageStore(loaded, extractor(subject.features), teacher, subject.guidance, out, part=16)
    sample = fresh(prompts_of(subject.prompts, loaded.prompts), images, SEED)
    whole = loaded.compile(teacher)
    print(f"{images} images, {steps} steps of {teacher.solver.name}, guidance {subject.guidance:g}")
    for title, schedules in tables(walked, branches.blocks).items():
        print(f"\n| {title} | cost | PSNR, dB | error over the first row's |\n|---|---:|---:|---:|", flush=True)
        first: Resampled | None = None
        for name, schedule in schedules.items():
            errors = store.measured(Recipe(schedule), sample).errors
            own = resampled(lambda chosen, e=errors: {"error": float(e[chosen].mean())}, images)["error"]  # type: ignore[misc]
            first = first or own
            over, cost = own.over(first), loaded.macs.relative(loaded.compile(schedule), whole)
            ratio = f"{over.value:.2f} ({over.low:.2f} to {over.high:.2f})" if over else "–"
            print(f"| {name} | {cost:.3f} | {psnr(own.value):.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.orderings")
