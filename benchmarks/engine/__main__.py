"""python -m benchmarks.engine: our steps against diffusers' and DeepCache's, as ratios measured side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from registry.commands.command_line import OneLineErrorsCommand, command_line
from registry.errors import InvalidInput

app = command_line(help="Ratios measured side by side.")


@app.command(cls=OneLineErrorsCommand)
def bench(
    section: Annotated[
        list[str] | None, typer.Argument(help="steps, generation, speedup, overhead, curve, sd15 [default: all].")
    ] = None,
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    repeats: Annotated[int, typer.Option(help="Pairs of measurements; fewer where one takes seconds.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads that torch computes with.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Ratios measured side by side: our steps against diffusers' and DeepCache's, waves, and what a row costs (minutes)."""
    import torch
    from rich.console import Console

    from benchmarks.engine import deepcache
    from benchmarks.engine.measurement import BenchmarkResult, print_table
    from benchmarks.engine.sections import SECTIONS
    from benchmarks.engine.workload import of_folder

    chosen = section or list(SECTIONS)
    unknown = set(chosen) - set(SECTIONS)
    if unknown:
        raise InvalidInput(f"there is no {min(unknown)}; there are {', '.join(SECTIONS)}", param="section")
    if repeats < 1 or threads < 1:
        raise InvalidInput(f"repeats and threads: must be at least 1, got {repeats} and {threads}", param="repeats")
    torch.set_num_threads(threads)
    workload, measurements = of_folder(model), list[BenchmarkResult]()
    progress = Console(stderr=True)
    for name in [name for name in SECTIONS if name in chosen]:
        progress.print(f"measuring: {name}", style="dim")
        with torch.inference_mode():
            measurements += SECTIONS[name](workload, repeats)
    about = {
        "model": workload.name,
        "torch": torch.__version__,
        "deepcache": deepcache.installed(),
        "threads": threads,
        "repeats": repeats,
    }
    if as_json:
        print(json.dumps({**about, "measurements": [{**asdict(one), "met": one.met} for one in measurements]}))
    else:
        print_table(about, measurements)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.engine")
