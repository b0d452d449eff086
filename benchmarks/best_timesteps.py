"""python -m benchmarks.best_timesteps RUN: what the best timesteps are worth to what can be set by hand, before any search.

Of each budget of a finished search, the strongest schedule set by hand: with corrections fitted on the search's own images, at
its own timesteps and at those that are best for as many steps (`search_jobs.best_timesteps`), with late steps counting more or
less. Measured on the images of the finals, which are other noise. The steps are the same, and so are the MACs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.extrapolation import fitted
from registry.schedule import Schedule
from search_jobs.config import JobConfig
from search_jobs.evaluator import Evaluator
from search_jobs.job import CONFIG
from search_jobs.report.run import read
from search_jobs.search import space_of
from search_jobs.space import LATE


def main(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    late: Annotated[list[float] | None, typer.Option(help="how much late steps count; repeat [default: the search's]")] = None,
) -> None:
    """Print a table: rFID and PSNR of every budget, by timesteps."""
    config = JobConfig.model_validate_json((folder / CONFIG).read_bytes()).as_kept()
    evaluator = Evaluator.open(config, folder)
    search, finals = evaluator.objective("search"), evaluator.objective("finals")
    solver = None if config.correct else evaluator.model.levels.plain_solver
    if (best := search.best_timesteps(solver)) is None:
        raise typer.BadParameter("holds no path that steps could land on", param_hint="RUN")
    space = replace(space_of(evaluator.model, config), best=best)
    run, strongest = read(folder), dict[float, Schedule | None]()
    for entry in run.report["by_hand"]:  # of each budget the best first
        strongest.setdefault(entry["ceiling"], run.schedule(entry))
    weights = late or list(LATE)
    print(f"{len(search.noise)} images to fit, {len(finals.noise)} others; rFID, PSNR in dB")
    print(
        "| at most | full + partial | its own timesteps | " + " | ".join(f"late steps {weight:g}" for weight in weights) + " |"
    )
    print("|---|---|" + "---:|" * (1 + len(weights)))
    for ceiling, schedule in strongest.items():
        if schedule is None or (genome := space.adopt(schedule)) is None:
            continue
        figures = []
        for timed in (genome, *(space.retimed(genome, weight) for weight in weights)):
            measured = finals.evaluate(fitted(search, space.schedule(timed), config.extrapolate)).measurement
            figures.append(f"{measured.rfid:.3g}, {measured.psnr:.1f}")
        counts = schedule.counts()
        print(f"| {ceiling:.3f} | {counts['full']}+{counts['partial']} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
