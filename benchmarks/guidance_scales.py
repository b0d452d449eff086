"""python -m benchmarks.guidance_scales RUN: what a search's tiers are worth at guidance scales it fitted, between and beyond.

Of each tier and scale, rFID to the teacher's images of that scale, of prompts and noise that no choice saw. Four ways: *ours*
takes the corrections of the scale (`registry.corrections`), *one scale* those of the search's own scale everywhere, as
documents from before have them, *none* the same steps without corrections, and *by hand* is the best of the strongest hand-set
schedules under the same ceiling, those that the search was held against at its own scale. Which of them is best is decided on
the images that are measured, which favours it.
Kill it whenever you like: the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from registry.commands.command_line import run_command
from registry.schedule import Schedule
from search_jobs.commands.options import Run
from search_jobs.config import WORST, JobConfig
from search_jobs.evaluator import EvaluationTask
from search_jobs.job import Job, write_json
from search_jobs.ledger import Ledger
from search_jobs.measurement import Measurement
from search_jobs.objective import Objective
from search_jobs.progress import ProgressBars
from search_jobs.report import read
from search_jobs.report.style import BY_HAND, INK, MUTED, RULE, SEARCHED, WIDTH, decades, dress, figure, headline, save

SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 10.0)  # what a search fits by default, and two between
OURS, ONE, NONE, HAND = "ours", "one scale", "none", "by hand"
LOOKS: Mapping[str, dict[str, Any]] = {  # as matplotlib draws each way's line
    OURS: {"c": SEARCHED, "marker": "*", "ms": 10, "lw": 2.2, "zorder": 5},
    ONE: {"c": "#6fb3bf", "marker": "o", "ms": 4, "ls": "--"},
    NONE: {"c": MUTED, "marker": "o", "ms": 4, "lw": 1},
    HAND: {"c": BY_HAND, "marker": "^", "ms": 5, "lw": 1.2},
}
Ways = dict[str, list[Schedule]]  # the schedules of each way, of which the best one on the images counts
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)


def main(
    run: Run,
    scale: Annotated[list[float] | None, typer.Option(help="Guidance scale; repeat [default: 1 to 10, eight of them].")] = None,
    images: Annotated[int, typer.Option(min=2, help="Of each schedule at each scale.")] = 24,
    to: Annotated[Path | None, typer.Option("--out", file_okay=False, help="[default: RUN/guidance]")] = None,
) -> None:
    """Measure a finished search's tiers at guidance scales; writes guidance.json and guidance.png, and prints tables."""
    config = JobConfig.parse(read(run).report["config"]).as_kept()
    folder = to or run / "guidance"
    folder.mkdir(parents=True, exist_ok=True)
    with ProgressBars(err) as bars:
        job = Job(config, run, bars)
        tiers = ways(job)
        every = list(
            {one.digest: one for of_tier in tiers.values() for schedules in of_tier.values() for one in schedules}.values()
        )
        found = {at: measured(job, every, at, images, folder) for at in sorted(scale or SCALES)}
    document = summary(job, tiers, found, images)
    write_json(folder / "guidance.json", document)
    save(drawn(document), folder / "guidance.png")
    for line in tables(document):
        out.print(line, soft_wrap=True, highlight=False)


def ways(job: Job) -> dict[str, Ways]:
    """By tier, the dearest first, its schedule in each way, and what is strongest by hand. Its run folder is finished."""
    with job.executor() as executor:
        search = job.search(job.evaluations(executor))
        search.by_hand(job.by_hand())
    of_tiers = {}
    for target in read(job.folder).shown:
        ours = Schedule.model_validate(target.entry["schedule"])
        of_tiers[target.label] = {
            OURS: [ours],
            ONE: [ours.for_scale(job.config.guidance)],
            NONE: [ours.model_copy(update={"scaled_corrections": None, "corrections": None})],
            HAND: [baseline.schedule for baseline in search.rivals[target.ceiling]],
        }
    return of_tiers


def measured(job: Job, schedules: Sequence[Schedule], scale: float, count: int, folder: Path) -> dict[str, Measurement]:
    """The figures of schedules at a scale, by digest; those in the folder are not made again."""
    ledger = Ledger(folder / "fresh.jsonl")
    tasks = [EvaluationTask(f"guidance {scale:g}, {count} images", schedule, fitting=False) for schedule in schedules]
    missing, objective = [task for task in tasks if ledger.get(task) is None], None
    for task in missing:
        objective = objective or opened(job, scale, count, len(missing))
        ledger.add(task, objective.evaluate(task.schedule))
        job.progress.advance(count)
    evaluations = [evaluation for task in tasks if (evaluation := ledger.get(task))]
    return {task.schedule.digest: one.measurement for task, one in zip(tasks, evaluations, strict=True)}


def opened(job: Job, scale: float, count: int, schedules: int) -> Objective:
    """What so many schedules are measured by at a scale, with the teacher's images."""
    job.progress.begin(f"teacher at {scale:g}", count)
    objective = job.evaluator.fresh(count, bootstrap=True, progress=job.progress.advance, guidance=scale)
    job.progress.begin(f"at {scale:g}", count * schedules)
    return objective


def summary(
    job: Job, tiers: Mapping[str, Ways], found: Mapping[float, Mapping[str, Measurement]], images: int
) -> dict[str, Any]:
    """The content of guidance.json: of every tier, scale and way rFID and PSNR, and the ratio of ours to by hand."""
    documents = []
    for tier, of_tier in tiers.items():
        (ours,) = of_tier[OURS]
        best = {
            scale: {
                way: min((by_digest[one.digest] for one in schedules), key=lambda figures: figures.rfid)
                for way, schedules in of_tier.items()
            }
            for scale, by_digest in found.items()
        }
        documents.append(
            {
                "tier": tier,
                "digest": ours.digest,
                "cost": next(iter(best.values()))[OURS].cost,
                "validated": list(ours.validated.guidance) if ours.validated else [],
                "scales": [
                    {
                        "guidance": scale,
                        **{way: {"rfid": one.rfid, "psnr": one.psnr} for way, one in of_ways.items()},
                        "ratio": estimate if (estimate := of_ways[OURS].against(of_ways[HAND]).get("rfid")) else None,
                    }
                    for scale, of_ways in best.items()
                ],
            }
        )
    fitted = sorted({job.config.guidance, *job.config.other_scales})
    return {
        "model": job.evaluator.model.ref.name,
        "own": job.config.guidance,
        "fitted": fitted,
        "images": images,
        "tiers": documents,
    }


def tables(document: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: rFID of ours over by hand, and the four ways beside each other."""
    scales = [at["guidance"] for at in document["tiers"][0]["scales"]]
    head = "| tier (cost) | " + " | ".join(
        f"{scale:g}" + ("" if scale in document["fitted"] else " (between)") for scale in scales
    )
    rule = "|---" * (1 + len(scales)) + "|"
    lines = [f"{document['images']} images; rFID of ours over by hand (95 %)", head + " |", rule]
    for tier in document["tiers"]:
        ratios = ["{:.2f} ({:.2f} to {:.2f})".format(*at["ratio"]) if at["ratio"] else "–" for at in tier["scales"]]
        lines.append(f"| {tier['tier']} ({tier['cost']:.3f}) | {' | '.join(ratios)} |")
    lines += [f"rFID: {', '.join(LOOKS)}", head + " |", rule]
    for tier in document["tiers"]:
        cells = [", ".join(f"{at[way]['rfid']:.2g}" for way in LOOKS) for at in tier["scales"]]
        lines.append(f"| {tier['tier']} | {' | '.join(cells)} |")
    lines += ["PSNR of ours, dB", head + " |", rule]
    for tier in document["tiers"]:
        decibels = [f"{at[OURS]['psnr']:.1f}" for at in tier["scales"]]
        lines.append(f"| {tier['tier']} | {' | '.join(decibels)} |")
    return lines


def drawn(document: Mapping[str, Any]) -> Figure:
    """The curves: a panel for each tier, rFID on a logarithmic axis; grey lines are scales that corrections were fitted at."""
    tiers = document["tiers"]
    picture = figure(WIDTH, 3.4)
    panels: Sequence[Axes] = picture.subplots(1, len(tiers), squeeze=False).flatten().tolist()
    for axes, tier in zip(panels, tiers, strict=True):
        at = [one["guidance"] for one in tier["scales"]]
        for way, look in LOOKS.items():
            rfid = [one[way]["rfid"] if one[way]["rfid"] < WORST else None for one in tier["scales"]]
            axes.plot(at, rfid, label=way, **look)  # type: ignore[arg-type]  # None leaves a gap
        axes.set(yscale="log", xlabel="guidance scale")
        dress(axes, grid=False)
        decades(axes.yaxis)
        for scale in document["fitted"]:
            axes.axvline(scale, c=RULE, lw=0.8, zorder=0)
        headline(axes, f"{tier['tier']}, {tier['cost']:.3f} of the cost")
    panels[0].set_ylabel(f"rFID, {document['model']}")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(LOOKS), frameon=False, fontsize=8.5, labelcolor=INK)
    return picture


if __name__ == "__main__":
    run_command(main)
