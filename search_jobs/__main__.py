"""python -m search_jobs run | report | compare | publish | evaluate"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.guidance import OFF
from engine.model_name import given_name
from registry.commands.command_line import command_line
from registry.errors import InvalidInput
from registry.stores.address import DEFAULT_ADDRESS
from search_jobs.commands.evaluate import evaluate
from search_jobs.commands.options import (
    FEATURES_HELP,
    Batch,
    Compile,
    Guidance,
    ModelName,
    Registry,
    Run,
    Sizes,
    guidance_scale,
)
from search_jobs.progress import ProgressBars

app = command_line(
    help="Search schedules for a model, look at what was found, publish it.",
)
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)
app.command()(evaluate)


@app.command()
def run(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")],
    to: Annotated[
        Path,
        typer.Option("--out", file_okay=False, help="The run folder; the same command on it again goes on where it stopped."),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A text file, one prompt or class a line; half held out [default: all classes, or none]."),
    ] = None,
    features: Annotated[Path | None, typer.Option(help=FEATURES_HELP)] = None,
    name: ModelName = None,
    teacher_steps: Annotated[
        int | None, typer.Option(help="Steps of the teacher (DDIM) [default: 50, or a distilled model's own].")
    ] = None,
    guidance: Guidance = None,
    sizes: Sizes = None,
    scales: Annotated[
        list[float] | None,
        typer.Option("--scale", help="A guidance scale that corrections are fitted for too; repeat [default: 1 2 3 5 7.5 10]."),
    ] = None,
    scaled: Annotated[int, typer.Option(help="Held-out images at each of those scales.")] = 12,
    screen: Annotated[int, typer.Option(help="Images by which most children are discarded.")] = 4,
    images: Annotated[int, typer.Option(help="Images that corrections are fitted on, in one batch.")] = 12,
    select: Annotated[int, typer.Option(help="Images that choose parents.")] = 24,
    finals: Annotated[int, typer.Option(help="Images that decide among finalists.")] = 32,
    heldout: Annotated[int, typer.Option(help="Images of the final figures.")] = 48,
    generations: int = 4,
    population: Annotated[int, typer.Option(help="Children in a generation, from the third on.")] = 30,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's literal form: no free offsets, timesteps or corrections.")
    ] = False,
    retime: Annotated[bool, typer.Option(help="Let the search move timesteps off the solver's own grid.")] = True,
    correct: Annotated[bool, typer.Option(help="Fit corrections to the teacher's path.")] = True,
    extrapolate: Annotated[bool, typer.Option(help="Let corrections extrapolate deep features where they drift.")] = True,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=CEILING: the most it may cost; repeat [default: of 1/3 to 1/12, or of a distilled model 3/4 to 1/4]."
        ),
    ] = None,
    budget: Annotated[
        list[float] | None, typer.Option(help="A further cost to aim at; repeat; 0 for none [default: those of compare].")
    ] = None,
    seed: int = 0,
    batch: Batch = None,
    together: Annotated[
        int | None, typer.Option(help="Schedules that share UNet calls, at most [default: 1; on a GPU what its memory holds].")
    ] = None,
    share_mib: Annotated[int, typer.Option(help="Memory for UNet calls that schedules have in common.")] = 512,
    workers: Annotated[int, typer.Option(help="Processes that measure, on a Dask cluster of their own.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="tcp://…: the scheduler of a Dask cluster, instead.")] = None,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: Compile = "auto",
) -> None:
    """Search schedules for a model; write the run folder's report.json and pictures."""
    from evaluation import bundled
    from search_jobs.config import JobConfig, digest_of
    from search_jobs.distilled import settings_of

    if name is not None:
        given_name(name)
    looks, usual = features or bundled(model), settings_of(model, name)
    scale = guidance_scale(guidance, usual["guidance"])
    steps = {} if teacher_steps is None else {"teacher_steps": teacher_steps}
    config = {
        "model": str(model), "name": name, "prompts": str(prompts or ""),
        "features": str(looks), "features_digest": digest_of(looks),
        **usual, **steps, "guidance": scale,
        **({"scales": scales} if scales else {}), "scaled": scaled, "sizes": sizes or [],
        "screen": screen, "images": images, "select": select, "finals": finals, "heldout": heldout,
        "generations": generations, "population": population, "seed": seed,
        "batch": batch, "together": together, "share_mib": share_mib, "compiled": compiled,
        "offsets": "paper" if paper else "free", "retime": retime and not paper, "correct": correct and not paper,
        "extrapolate": extrapolate,
        "device": device, "dtype": dtype, "prompts_digest": digest_of(prompts) if prompts else "",
        **({"tiers": dict(map(_ceiling, tier))} if tier else {}),
        **({"budgets": [cost for cost in budget if cost]} if budget else {}),
    }  # fmt: skip
    parsed = JobConfig.parse(config)
    if {*(scales or ())} - {parsed.guidance} and not parsed.other_scales:
        why = "no guidance" if parsed.guidance <= OFF else "no corrections"
        raise InvalidInput(f"there is nothing to fit at other guidance scales: this search has {why}", param="scale")
    try:
        with ProgressBars(err) as bars:
            from search_jobs.job import Job

            Job(parsed, to, bars, workers, scheduler).run()
    except KeyboardInterrupt:
        err.print("stopped; every finished measurement is kept: run the same command again to go on")
        raise typer.Exit(130) from None
    _show(to)


@app.command()
def report(folder: Run) -> None:
    """Write the page and pictures of a finished search again and print its table."""
    _show(folder)


@app.command()
def publish(
    folder: Run,
    registry: Registry = DEFAULT_ADDRESS,
    sign: Annotated[
        Path | None, typer.Option(help="A private key (python -m registry keygen): sign what is published.")
    ] = None,
) -> None:
    """Publish a finished search's tiers to a registry and move the tiers to them.

    Where a policy guards a tier, its schedule is published, and what requests the promotion is printed.
    """
    from registry.catalog import Catalog
    from registry.commands.options import approved_tiers
    from registry.signing import SigningKey
    from registry.stores.address import open_store
    from search_jobs.publish import artifacts
    from search_jobs.publish import publish as publish_report
    from search_jobs.report import read

    search_report = read(folder).report
    key = SigningKey.read(sign) if sign else None
    catalog = Catalog(open_store(registry), search_report["model"]["name"], approved_tiers=approved_tiers())
    for tier, version, promoted in publish_report(search_report, artifacts(folder), catalog, key):
        described = search_report["tiers"].get(tier, {}).get("schedule", {}).get("validated")
        scale = _said(described) if described else ""
        out.print(f"{tier:10} version {version.number}  {version.digest[:12]}{scale}")
        if not promoted:
            out.print(f"           not promoted, it takes a second person: python -m registry promote {tier} {version.number}")
    out.print("requests that name no guidance_scale get that of their tier; at the teacher, that of the default tier")


@app.command()
def compare(
    folder: Run,
    budget: Annotated[
        list[float] | None, typer.Option(help="Relative cost; repeat [default: 1/2, 1/3, 1/5, 1/8, 1/12].")
    ] = None,
    twin: Annotated[list[Path] | None, typer.Option(help="Run folder of another search of the same model; repeat.")] = None,
    rival: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of another model, such as a distilled student, to measure beside it; repeat."),
    ] = None,
    rival_steps: Annotated[
        list[int] | None,
        typer.Option(help="Of each --rival, or of all [default: a distilled model's own, else the teacher's]."),
    ] = None,
    rival_guidance: Annotated[
        list[float] | None,
        typer.Option(help="Of each --rival, or of all [default: a distilled model's own, else the teacher's]."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that measure.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="tcp://…: the scheduler of a Dask cluster, instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Hold a finished search against every kind of hand-set schedule, on held-out prompts and noise; writes compare.json."""
    from search_jobs.config import JobConfig
    from search_jobs.distilled import usual_budgets
    from search_jobs.report import read, write
    from search_jobs.rival import rivals

    config = JobConfig.parse(read(folder).report["config"]).as_kept()
    config.refuse_changed_files()
    students = rivals(config, rival or [], rival_steps or [], rival_guidance or [])
    with ProgressBars(err) as bars:
        from search_jobs.compare import compare as measure
        from search_jobs.compare import table
        from search_jobs.job import Job

        job = Job(config, folder, bars, workers, scheduler)
        document = measure(job, budget or usual_budgets(config), twin or [], students)
    write(read(folder))  # the page, now with the comparison
    if as_json:
        print(json.dumps(document))
    else:
        out.print(table(document))


def _show(folder: Path) -> None:
    from search_jobs.report import at_other_scales, read, speed, table, write

    run = read(folder)
    page, *pictures = write(run)
    out.print(table(run))
    if scales := at_other_scales(run):
        out.print(scales)
    if said := speed(run):
        out.print(said, highlight=False)
    out.print("by hand: the strongest schedule that a user could set without searching, under the same ceiling")
    out.print(f"{page}, with {', '.join(path.name for path in pictures)}", soft_wrap=True)


def _said(validated: dict[str, Any]) -> str:
    """The guidance scales that a tier is for, and the one that requests get which name none."""
    scales = validated["guidance"]
    default = validated.get("default_guidance", scales[0])
    return f"  guidance {default:g}" + (f" ({scales[0]:g} to {scales[-1]:g})" if len(scales) > 1 else "")


def _ceiling(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InvalidInput(f"expected NAME=CEILING such as fast=0.13, got {text!r}", param="tier") from None


if __name__ == "__main__":
    app()
