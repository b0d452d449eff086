"""python -m benchmarks.paper run | page: the paper's table, in small; hours in full, minutes with --quick."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from registry.commands.command_line import command_line
from registry.errors import InvalidInput

app = command_line(help="The paper's table, in small: measure it, and write its page.")
err = Console(stderr=True)

OUT, DOCS = Path(".flexi/paper"), Path("docs")
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="What is measured, a folder for each model.")]
Docs = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Where results.md and its pictures go [default: docs; with --quick what is measured]."),
]


@app.command()
def run(
    to: Out = OUT,
    model: Annotated[
        list[str] | None, typer.Option(help="A bundled model's name or a model's folder; repeat [default: those bundled].")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=8, max=100_000, help="Images of all figures [default: 5000; 1000 without real images].")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=20, help="Searches of each space [default: 3; 1 with --quick].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few images, small searches: minutes, and figures to match.")] = False,
    teacher_steps: Annotated[int | None, typer.Option(min=4, max=900, help="Steps of the teacher [default: 50].")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale [default: the model's own]."),
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Features [default: MODEL/features, else MODEL/clip].")] = None,
    real: Annotated[
        Path | None, typer.Option(help="A folder of real pictures, or a file of their features [default: FEATURES/real.npz].")
    ] = None,
    docs: Docs = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Measure the table; the same command goes on where it stopped, also after a kill. Writes the page as it goes."""
    from benchmarks.paper.page import write
    from benchmarks.paper.subject import FULL, QUICK, Subject
    from benchmarks.paper.table import ModelTable
    from models.bundled import BUNDLED, MODELS
    from search_jobs.progress import ProgressBars

    usual, pages = QUICK if quick else FULL, docs or (to if quick else DOCS)
    steps = teacher_steps or usual.teacher_steps
    effort = replace(usual, images=images or usual.images, seeds=seeds or usual.seeds, teacher_steps=steps)
    if (features or real) and len(model or ()) != 1:
        raise InvalidInput("are of one model: name it", param="model")
    folders = [Path(name) if (Path(name) / "model_index.json").is_file() else MODELS / name for name in model or BUNDLED]
    command = "python -m benchmarks.paper run " + shlex.join(_without(sys.argv[2:], "--out", "--docs"))
    for folder in folders:
        if not model and not (folder / "model_index.json").is_file():
            err.print(f"{folder} is not there: left out")
            continue
        subject = Subject.of(folder, real, features, guidance)
        with ProgressBars(err) as bars:
            place = to / (subject.name if not quick else f"{subject.name}-quick")
            ModelTable(subject, effort, place, bars, command.strip(), device, dtype).run()
        write(to, pages)
    print(write(to, pages))


def _without(arguments: Sequence[str], *options: str) -> list[str]:
    """A command line without options that say where things go, and not what they are."""
    kept, left = list[str](), iter(arguments)
    for argument in left:
        if argument in options:
            next(left, None)
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept


@app.command()
def page(to: Out = OUT, docs: Docs = None) -> None:
    """Write the page of what is measured so far."""
    from benchmarks.paper.page import write

    print(write(to, docs or DOCS))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.paper")
