"""python -m search_jobs run | report | publish | evaluate"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from registry.cli import command_line
from registry.errors import InvalidInput

app = command_line(
    help="Search schedules for a model, look at what was found, publish it.",
)
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)

Run = Annotated[Path, typer.Argument(help="The run folder.")]
Registry = Annotated[str, typer.Option(envvar="FLEXI_REGISTRY", help="A folder or s3://bucket/prefix.")]


class Bars:
    """Progress bars with an estimate of the time left, one per stage of a job."""

    def __init__(self, bars: RichProgress) -> None:
        """Draw on these bars."""
        self.bars = bars
        self.task: TaskID | None = None

    def stage(self, name: str, images: int) -> None:
        """Begin a bar of so many images."""
        if not self.bars.console.is_terminal:  # bars would show only at the end
            self.bars.console.print(f"{name}: {images} images", highlight=False)
        self.task = self.bars.add_task(name, total=images)

    def advance(self, images: int) -> None:
        """Move the newest bar."""
        if self.task is not None:
            self.bars.advance(self.task, images)


@app.command()
def run(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt a line; half for the search, half held out.")],
    to: Annotated[Path, typer.Option("--out", help="The run folder; the same command on it again goes on where it stopped.")],
    features: Annotated[Path | None, typer.Option(help="A CLIP folder for the features; default: MODEL/clip.")] = None,
    teacher_steps: Annotated[int, typer.Option(help="Steps of the teacher (DDIM).")] = 50,
    guidance: float = 3.0,
    images: Annotated[int, typer.Option(help="Images a candidate is judged by.")] = 12,
    finals: Annotated[int, typer.Option(help="Images that decide among a tier's finalists.")] = 16,
    heldout: Annotated[int, typer.Option(help="Images of the final figures.")] = 24,
    generations: int = 4,
    population: Annotated[int, typer.Option(help="New candidates in a generation.")] = 8,
    retime: Annotated[bool, typer.Option(help="Let the search move timesteps off the solver's own grid.")] = True,
    tier: Annotated[list[str] | None, typer.Option(help="NAME=CEILING: the most it may cost; repeat for more.")] = None,
    seed: int = 0,
    batch: Annotated[int, typer.Option(help="Images generated at once: bounds memory.")] = 8,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Search schedules for a model; write the run folder's report.json and pictures."""
    from search_jobs.config import JobConfig, digest_of

    config = {
        "model": str(model), "prompts": str(prompts), "features": str(features or model / "clip"),
        "teacher_steps": teacher_steps, "guidance": guidance, "images": images, "finals": finals, "heldout": heldout,
        "generations": generations, "population": population, "seed": seed, "batch": batch,
        "retime": retime,
        "device": device, "dtype": dtype, "prompts_digest": digest_of(prompts),
        **({"tiers": dict(map(_ceiling, tier))} if tier else {}),
    }  # fmt: skip
    parsed = JobConfig.parse(config)
    try:
        with _bars() as bars:
            from search_jobs.job import Job

            Job(parsed, to, Bars(bars)).run()
    except KeyboardInterrupt:
        err.print("stopped; every finished measurement is kept: run the same command again to go on")
        raise typer.Exit(130) from None
    _show(to)


@app.command()
def report(folder: Run) -> None:
    """Write the page and pictures of a finished search again and print its table."""
    _show(folder)


@app.command()
def publish(folder: Run, registry: Registry = ".flexi/registry") -> None:
    """Publish a finished search's tiers to a registry and move the tiers to them."""
    from registry.address import open_store
    from registry.catalog import Catalog
    from search_jobs.publish import artifacts
    from search_jobs.publish import publish as publish_report
    from search_jobs.report import read

    found = read(folder).report
    catalog = Catalog(open_store(registry), found["model"]["name"])
    for alias in publish_report(found, artifacts(folder), catalog):
        out.print(f"{alias.tier:10} version {alias.version}  {alias.digest[:12]}")


@app.command()
def evaluate(
    schedule: Annotated[Path, typer.Argument(help="A schedule document.")],
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt a line.")],
    features: Annotated[Path | None, typer.Option(help="A CLIP folder; default: MODEL/clip.")] = None,
    images: int = 32,
    teacher_steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
    batch: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Measure one schedule against the teacher and print the figures as JSON."""
    from engine.models import load
    from registry.schedule import Schedule
    from search_jobs.config import read_prompts
    from search_jobs.features import Clip
    from search_jobs.objective import Objective, Sample

    document = Schedule.parse(schedule.read_bytes())
    sample = Sample.draw(read_prompts(prompts), images, seed)
    loaded = load(model, device, dtype)
    objective = Objective(loaded, Clip(features or model / "clip"), sample, teacher_steps, guidance, batch)
    print(json.dumps(objective.evaluate(document).row()))


def _show(folder: Path) -> None:
    from search_jobs.report import read, table, write

    run = read(folder)
    page, *pictures = write(run)
    out.print(table(run))
    out.print("by hand: the strongest schedule that a user could set without searching, under the same ceiling")
    out.print(f"{page}, with {', '.join(path.name for path in pictures)}", soft_wrap=True)


def _ceiling(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InvalidInput(f"tier: expected NAME=CEILING such as fast=0.13, got {text!r}", param="tier") from None


def _bars() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=err,
    )  # fmt: skip


if __name__ == "__main__":
    app()
