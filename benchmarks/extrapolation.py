"""python -m benchmarks.extrapolation RUN: what extrapolated deep features are worth to the schedules of a finished search.

Each schedule that the search chose is fitted on the search's own images twice, with the deep features reused as they are and
extrapolated, and measured on its held-out images: other prompts and other noise, at the same MACs. `--fresh` measures on so
many images of noise that no search draws, instead; `--guidance` at one of the other scales that the run has images of. Ratios
are of the loss, which the search minimises, with paired 95 % intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.schedule import Schedule
from search_jobs.config import JobConfig
from search_jobs.evaluator import Evaluator
from search_jobs.job import CONFIG
from search_jobs.objective import Objective
from search_jobs.report.run import read
from search_jobs.stages import figures_at, fit_at


def fitted(objective: Objective, schedule: Schedule, extrapolating: bool) -> Schedule:
    """The schedule with corrections that are fitted on the objective's images."""
    for sampler in objective.samplers:
        sampler.extrapolating = extrapolating
    return objective.evaluate(schedule, fitting=True).schedule


def main(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    guidance: float | None = None,
    ceiling: list[float] | None = None,
    images: Annotated[int | None, typer.Option("--fresh", min=2, help="images of noise that no search draws")] = None,
) -> None:
    """Print a table: for every ceiling of the run, or those that are named, rFID and PSNR of both."""
    run = read(folder)
    config = JobConfig.model_validate_json((folder / CONFIG).read_bytes()).as_kept()
    evaluator = Evaluator.open(config, folder)
    own = guidance is None or guidance == config.guidance
    if images and not own:
        raise typer.BadParameter("are at the search's own scale", param_hint="--fresh")
    search = evaluator.objective("search" if own else fit_at(guidance or 0))
    if images:
        figures = evaluator.fresh(images, bootstrap=True)
    else:
        figures = evaluator.objective("held-out" if own else figures_at(guidance or 0))
    print(f"{len(search.noise)} images to fit, {len(figures.noise)} others, guidance {figures.guidance:g}")
    print("| cost | schedule | rFID: as it is, extrapolated | PSNR | ratio of the loss | weights |")
    print("|---|---|---|---|---|---|")
    for target in run.targets:
        schedule = run.schedule(target.entry)
        if schedule is None or (ceiling and not any(abs(target.entry["ceiling"] - one) < 1e-3 for one in ceiling)):
            continue
        plain = schedule.model_copy(update={"corrections": None, "scaled_corrections": None})
        schedules = [fitted(search, plain, extrapolating) for extrapolating in (False, True)]
        before, after = (evaluation.measurement for evaluation in figures.evaluate_all(schedules))
        weights = [f"{by.extrapolation:.2f}" for by in schedules[1].corrections or () if by.extrapolation]
        counts, loss = plain.counts(), after.against(before)["loss"]
        print(
            f"| {after.cost:.3f} | {counts['full']}+{counts['partial']} {plain.solver.name} "
            f"| {before.rfid:.4f}, {after.rfid:.4f} | {before.psnr:.1f}, {after.psnr:.1f} dB "
            f"| {loss.value:.2f} ({loss.low:.2f} to {loss.high:.2f}) | {', '.join(weights) or '–'} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
