"""python -m benchmarks.engine: our steps against diffusers' and DeepCache's, as ratios measured side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.commands.command_line import command_line

app = command_line(help="Ratios measured side by side.")


@app.command()
def bench(
    section: Annotated[
        list[str] | None, typer.Argument(help="steps, generation, speedup, overhead, curve, sd15 [default: all].")
    ] = None,
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    repeats: Annotated[int, typer.Option(help="Pairs of measurements; fewer where one takes seconds.")] = 15,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Ratios measured side by side: our steps against diffusers' and DeepCache's, waves, and what a row costs (minutes)."""
    from benchmarks.engine import run

    run(model, section or [], repeats, threads, as_json)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.engine")
