"""python -m benchmarks.search_progress: what a search gains by making more images, up to ten times the usual number.

Of each seed one long search runs. After so many images, what it would choose for every budget is measured on noise that
decides nothing, the same for all seeds. The hypervolume is that of the front of these schedules in (ln cost, ln rFID), up to
the corner of the teacher's cost and the rFID of what can be set by hand for the smallest budget.
Kill it whenever you like: the same command goes on where it was, and so does one with larger --times or --images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from engine.guidance import OFF
from engine.loading import usual
from evaluation import bundled
from registry.commands.command_line import run_command
from registry.schedule import Schedule
from search_jobs.commands.options import FEATURES_HELP, guidance_scale
from search_jobs.config import JobConfig, digest_of
from search_jobs.evaluator import EvaluationTask
from search_jobs.job import Job, write_json
from search_jobs.ledger import Ledger
from search_jobs.measurement import Measurement
from search_jobs.optimiser import Point, hypervolume
from search_jobs.progress import ProgressBars
from search_jobs.report.style import SEARCHED, WIDTH, dress, figure, save
from search_jobs.stages import RUNGS

STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of the usual number of images: a line of the table each
Line = tuple[int, dict[float, Schedule]]  # after so many images what a search would choose for each budget
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)


def main(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")],
    to: Annotated[
        Path, typer.Option("--out", file_okay=False, help="A folder for everything; the same command on it goes on.")
    ],
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt or class a line.")] = None,
    features: Annotated[Path | None, typer.Option(help=FEATURES_HELP)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Searches.")] = 3,
    images: Annotated[int, typer.Option(min=10, help="The usual number of images of a search, baselines' included.")] = 5000,
    times: Annotated[float, typer.Option(min=1, max=100, help="So many times as many are made.")] = 10,
    fresh_images: Annotated[
        int, typer.Option("--fresh", min=2, help="Images of noise that decides nothing, of each schedule.")
    ] = 256,
    population: Annotated[int, typer.Option(min=1, help="Children in a generation, from the third on.")] = 30,
    screen: int = 4,
    fitted: Annotated[int, typer.Option(help="Images that corrections are fitted on.")] = 12,
    select: int = 24,
    teacher_steps: int = 50,
    guidance: Annotated[float | None, typer.Option(help="Scale [default: the model's own].")] = None,
    budget: Annotated[
        list[float] | None, typer.Option(help="Cost to aim at; repeat [default: a search's tiers and budgets].")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many MACs it would take.")] = False,
) -> None:
    """Search longer than one usually does and say what it brought; writes progress.json and progress.png."""
    looks = features or bundled(model)
    config = {
        "model": str(model), "prompts": str(prompts or ""), "prompts_digest": digest_of(prompts) if prompts else "",
        "features": str(looks), "features_digest": digest_of(looks), "generations": 0, "population": population,
        "screen": screen, "images": fitted, "select": select, "teacher_steps": teacher_steps,
        "guidance": guidance_scale(guidance, usual(model).guidance),
        **({"budgets": budget, "tiers": {}} if budget else {}),
    }  # fmt: skip
    limits = [round(step * images) for step in STEPS if step <= times]
    with ProgressBars(err) as bars:
        searches = []
        for seed in range(seeds):
            job = Job(JobConfig.parse({**config, "seed": seed}), to / f"seed-{seed}", bars)
            if seed == 0:
                out.print(expected(job, seeds, limits, fresh_images))
            if plan:
                return
            searches.append(lines(job, limits))
        chosen = {one.digest: one for search in searches for _, by_budget in search for one in by_budget.values()}
        measurements = measured(job, list(chosen.values()), fresh_images, to)
    document = summary(searches, measurements, fresh_images)
    write_json(to / "progress.json", document)
    draw(document, to / "progress.png")
    out.print(table(document))


def lines(job: Job, limits: Sequence[int]) -> list[Line]:
    """What a job's search would choose for each budget: set by hand, and then after at least so many images."""
    with job.executor() as executor:
        for stage in RUNGS:
            job.objective(stage)
        evaluations = job.evaluations(executor)
        search = job.search(evaluations)
        search.by_hand(job.by_hand())
        search.begin(job.even())
        found: list[Line] = [(evaluations.images, {budget: best[0].schedule for budget, best in search.rivals.items() if best})]
        search.generation()
        for limit in limits:
            while evaluations.images < limit and search.generation():
                pass  # until it has made them, or the space is exhausted
            best = {budget: schedules[0] for budget, schedules in search.finalists().items() if schedules}
            found.append((evaluations.images, best))
    return found


def measured(job: Job, schedules: Sequence[Schedule], count: int, folder: Path) -> dict[str, Measurement]:
    """The figures of schedules on images that no search saw, by digest; those in the folder are not made again."""
    stage, ledger = f"fresh {count}", Ledger(folder / "fresh.jsonl")
    job.progress.begin("teacher, fresh noise", count)
    objective = job.evaluator.fresh(count, cache=folder / f"teacher-{stage}.pt", progress=job.progress.advance)
    job.progress.begin("fresh noise", count * len(schedules))
    measurements = {}
    for task in (EvaluationTask(stage, schedule, fitting=False) for schedule in schedules):
        if (evaluation := ledger.get(task)) is None:
            evaluation = objective.evaluate(task.schedule)
            ledger.add(task, evaluation)
        job.progress.advance(count)
        measurements[task.schedule.digest] = evaluation.measurement
    return measurements


def summary(searches: Sequence[Sequence[Line]], measurements: Mapping[str, Measurement], count: int) -> dict[str, Any]:
    """The content of progress.json: of every search and line images, rFID by budget, hypervolume, and both held to the last."""
    smallest = min(budget for search in searches for budget in search[0][1])
    corner = (1.0, max(measurements[search[0][1][smallest].digest].rfid for search in searches))
    of_searches = []
    for search in searches:
        figures = [{budget: measurements[one.digest] for budget, one in by_budget.items()} for _, by_budget in search]
        volumes = [hypervolume([Point(None, m.cost, m.rfid) for m in by_budget.values()], corner) for by_budget in figures]  # type: ignore[arg-type]  # no genes
        last = figures[-1]
        ratios = [fmean(math.log(by_budget[b].rfid / last[b].rfid) for b in last if b in by_budget) for by_budget in figures]
        of_searches.append(
            [
                {
                    "images": images,
                    "hypervolume": volume,
                    "share": volume / volumes[-1] if volumes[-1] else 1.0,  # where nothing was gained, all of it
                    "rfid_over_last": math.exp(ratio),
                    "rfid": {f"{budget:.4f}": m.rfid for budget, m in by_budget.items()},
                }
                for (images, _), by_budget, volume, ratio in zip(search, figures, volumes, ratios, strict=True)
            ]
        )
    return {"corner": corner, "fresh_images": count, "searches": of_searches}


def table(document: dict[str, Any]) -> Table:
    """A line for each number of images: means over the searches, and the worst one's share."""
    searches = document["searches"]
    grid = Table(title=f"{len(searches)} searches; rFID of {document['fresh_images']} images that decided nothing")
    for column in ("images", "hypervolume", "of the last, %", "the worst search, %", "rFID / the last's"):
        grid.add_column(column, justify="right")
    for of_seeds in zip(*searches, strict=True):
        images, volume, share, ratio = (
            fmean(line[name] for line in of_seeds) for name in ("images", "hypervolume", "share", "rfid_over_last")
        )
        worst = min(line["share"] for line in of_seeds)
        grid.add_row(f"{images:,.0f}", f"{volume:.3f}", f"{100 * share:.1f}", f"{100 * worst:.1f}", f"{ratio:.2f}")
    grid.caption = f"corner: cost 1, rFID {document['corner'][1]:.3g}; the first line is set by hand"
    return grid


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the picture: hypervolume against images, a line for each search."""
    picture = figure(WIDTH, 3)
    axes = picture.subplots()
    for search in document["searches"]:
        axes.plot([line["images"] for line in search], [line["hypervolume"] for line in search], "o-", c=SEARCHED, lw=1.2, ms=3)
    axes.set(xlabel="images made, baselines included", ylabel="hypervolume, fresh noise", xscale="log")
    dress(axes)
    save(picture, path)


def expected(job: Job, seeds: int, limits: Sequence[int], count: int) -> str:
    """About how much work it is, by the budgets that schedules may cost."""
    model, ceilings = job.evaluator.model, job.config.ceilings
    teacher = model.compile(model.teacher(job.config.teacher_steps))
    one = model.macs.of_program(teacher, 2 if job.config.guidance > OFF else 1)
    searched, cost = seeds * limits[-1], fmean(ceilings)
    fresh_ones = seeds * (1 + len(limits)) * len(ceilings) * count
    teachers = seeds * (job.config.screen + job.config.images + job.config.select) + count
    macs = ((searched + fresh_ones) * cost + teachers) * one
    return (
        f"about {searched:,} images of searches, at most {fresh_ones:,} on fresh noise, {teachers:,} of the teacher\n"
        f"the teacher's image is {one / 1e9:.3g} G MACs, all of it {macs / 1e12:,.1f} T MACs"
    )


if __name__ == "__main__":
    run_command(main)
