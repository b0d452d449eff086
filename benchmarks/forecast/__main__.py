"""python -m benchmarks.forecast MODEL --out FOLDER: whether a forecast of what partial steps reuse pays, at equal MACs.

Schedules are uniform caching of the model's plain solver. On images of its own each form of reuse chooses the best of them for
each cost, and finds what it has to fit there; the figures are of other prompts and noise, the same for all. Forms: the last
feature as it is; Taylor forecasts of orders 1 and 2; weights for each partial step, fitted to features of two and of three full
steps; each with the solver's numbers as they are, and with corrections fitted behind them, where the extrapolation that a
schedule can have is a form as well. What was measured is kept, and the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks.forecast.denoisers import Fitting, Forecasting
from benchmarks.forecast.forecasts import Recipe, taylor
from benchmarks.paper.differences import PSNR, RFID
from benchmarks.paper.figures import figures
from benchmarks.paper.images import ImageStore
from benchmarks.paper.subject import Subject
from engine.branches import BlockPairs
from engine.denoiser import Denoiser
from engine.loading import load
from engine.program import path_of
from evaluation import extractor
from evaluation.paired import Estimate, Resampled
from registry.commands.command_line import command_line
from registry.schedule import Blocks, Branch, Schedule, parse_branch
from search_jobs.baselines import Baselines
from search_jobs.config import read_prompts
from search_jobs.memory import memory_of
from search_jobs.objective import Sample
from search_jobs.path import TeacherPath, walk
from search_jobs.pieces import Pieces, UNetInPieces
from search_jobs.prefix_caching import PrefixCachingSampler
from search_jobs.stages import fresh, halves

REUSE, BUILT = "as it is", "extrapolated (built)"
FORMS = (REUSE, "Taylor 1", "Taylor 2", "fitted, 2 features", "fitted, 3 features")
CORRECTED = (REUSE, BUILT, *FORMS[1:])
FIT, REPORT = 4, 5  # seeds of noise
NEAR = 0.75  # of the budget: a cheaper pattern is one of another cost

app = command_line(help=__doc__ or "")


class Form(NamedTuple):
    """How partial steps get what they reuse, and whether corrections were fitted behind it."""

    name: str
    corrected: bool


@dataclass(frozen=True)
class Comparison:
    """Of one model: `fit` images to fit and choose on, `images` to measure."""

    store: ImageStore
    prompts: list[str]
    fit: int
    images: int

    @cached_property
    def _given(self) -> tuple[torch.Tensor, object, object, float]:
        model, sample, scale = self.store.model, self.sample(FIT), self.store.guidance
        noise = torch.stack([model.noise(seed) for seed in sample.seeds])
        negative = model.negative([""]).expand(len(noise)) if scale > 1 else None
        return noise, model.encode(sample.prompts), negative, scale

    @cached_property
    def path(self) -> TeacherPath:
        """The teacher's, of the images to fit on."""
        model, teacher = self.store.model, self.store.teacher
        return walk(model.network, model.compile(teacher), path_of(teacher, model.levels), *self._given)  # type: ignore[arg-type]

    def sample(self, seed: int) -> Sample:
        """Images to fit on, or others: of the other half of the prompts and of other noise."""
        seen, unseen = halves(self.prompts)
        return fresh(seen if seed == FIT else unseen, self.fit if seed == FIT else self.images, seed)

    def recipe(self, schedule: Schedule, form: Form) -> Recipe:
        """A schedule in one form, with what is fitted for it."""
        model, weights = self.store.model, None
        network: Denoiser = model.network
        if form.name.startswith("Taylor"):
            weights = taylor(schedule, model.levels, int(form.name[-1]))
            network = Forecasting(network, weights)
        elif form.name.startswith("fitted"):
            network = fitting = Fitting(network, int(form.name.split()[1]))
        if form.corrected or form.name.startswith("fitted"):
            unet = UNetInPieces(network, Pieces(memory_of(model.device)), self.fit * 2)
            sampler = PrefixCachingSampler(model, unet, *self._given, self.path, extrapolating=form.name == BUILT)  # type: ignore[arg-type]
            schedule = sampler.run([schedule], fitting=form.corrected)[0].schedule
        return Recipe(schedule, tuple(fitting.found) if form.name.startswith("fitted") else weights)

    def best(self, schedules: Mapping[str, Schedule], form: Form) -> tuple[str, Recipe]:
        """The best of some schedules in one form, by the images to fit on."""
        recipes = {name: self.recipe(schedule, form) for name, schedule in schedules.items()}
        losses = {name: self.store.loss(recipe, self.sample(FIT)) for name, recipe in recipes.items()}
        name = min(losses, key=lambda one: losses[one])
        return name, recipes[name]

    def figures(self, recipe: Recipe) -> Mapping[str, Resampled]:
        """rFID and PSNR on the other images."""
        own, teacher = (self.store.measured(one, self.sample(REPORT)) for one in (recipe, Recipe(self.store.teacher)))
        key = self.store.key(self.sample(REPORT))  # the teacher, guidance, features and prompts too
        return figures(own, teacher, None, self.store.folder / "figures" / f"{recipe.digest[:24]}-{key}.npz")


def candidates(baselines: Baselines, budget: float, steps: int, branches: list[Branch]) -> Iterator[tuple[str, Schedule]]:
    """Uniform caching of the plain solver that costs nearly the budget, by name."""
    solver = baselines.levels.plain_solver
    for branch in branches:
        for every in (2, 3, 4, 6, 8):
            for full in range(steps // every, 0, -1):
                schedule = baselines.uniform(solver, full, every, branch)
                if (cost := baselines.cost_of(schedule)) <= budget:
                    if cost >= NEAR * budget:
                        yield f"{full} × {every}, {branch}", schedule
                    break


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="A model's folder, with features beside its weights.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Where measurements are kept.")] = Path(".flexi/forecast"),
    fit: Annotated[int, typer.Option(min=2, help="Images to fit and choose on.")] = 12,
    images: Annotated[int, typer.Option(min=8, help="Images of the figures.")] = 64,
    speedup: Annotated[list[float] | None, typer.Option(help="Repeat [default: 2, 2.6, 5.1, 8].")] = None,
    branch: Annotated[list[str] | None, typer.Option(help="Repeat [default: 0+0 and 1+0; of a UNet the first two].")] = None,
    teacher_steps: int = 50,
    guidance: float | None = None,
) -> None:
    """Print a table for each cost: rFID and PSNR of each form, beside reuse as it is and, corrected, the extrapolation."""
    torch.set_num_threads(1)
    subject = Subject.of(model, guidance=guidance)
    loaded = load(model)
    assert subject.prompts is not None, "prompts to fit on and others"
    store = ImageStore(loaded, extractor(subject.features), loaded.teacher(teacher_steps), subject.guidance, out, part=16)
    comparison = Comparison(store, read_prompts(subject.prompts), fit, images)
    whole = loaded.compile(store.teacher)
    baselines = Baselines(
        loaded.ref, loaded.levels, loaded.network.branches, lambda one: loaded.macs.relative(loaded.compile(one), whole)
    )
    usual = (Blocks(0, 0), Blocks(1, 0)) if isinstance(loaded.network.branches, BlockPairs) else (1, 2)
    branches = [parse_branch(one) for one in branch or ()] or list(usual)
    facts = f"{fit} images to fit, {images} measured, guidance {subject.guidance:g}, {teacher_steps} steps"
    print(f"{facts}, {', '.join(map(str, branches))}")
    for each in speedup or (2.0, 2.6, 5.1, 8.0):
        schedules = dict(candidates(baselines, 1 / each, teacher_steps, branches))
        print(f"\n| {each:g}× | schedule | rFID | PSNR, dB | rFID over {REUSE} | over {BUILT}, corrected |")
        print("|---|---|---:|---:|---:|---:|", flush=True)
        if not schedules:
            print("| none costs so much | – | – | – | – | – |")
            continue
        found = {}
        for form in (*(Form(name, False) for name in FORMS), *(Form(name, True) for name in CORRECTED)):
            name, recipe = comparison.best(schedules, form)
            found[form] = name, comparison.figures(recipe)
        plain, built = found[Form(REUSE, False)][1], found[Form(BUILT, True)][1]
        for form, (name, own) in found.items():
            cells = [said(own[RFID].over(plain[RFID]), 2), said(own[RFID].over(built[RFID]), 2) if form.corrected else "–"]
            label = f"{form.name}{', corrected' if form.corrected else ''}"
            print(
                f"| {label} | {name} | {own[RFID].value:.4f} | {said(own[PSNR].estimate(), 1)} | {' | '.join(cells)} |",
                flush=True,
            )


def said(estimate: Estimate | None, digits: int) -> str:
    """An estimate with its interval."""
    if estimate is None:
        return "–"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.forecast")
