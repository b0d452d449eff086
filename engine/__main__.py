"""python -m engine: run one schedule by hand, import a checkpoint, compile a model beforehand, count what a UNet costs.

Torch is imported only when needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.buckets import MAX_ROWS
from engine.commands.generate import generate
from engine.image_size import sizes_in
from engine.importing.command import import_checkpoint
from engine.named_unet import named_unet
from engine.prompt_syntax import MAX_CHUNKS
from registry.commands.command_line import command_line
from registry.errors import InvalidInput
from registry.schedule import Branch, parse_branch, said

if TYPE_CHECKING:
    from engine.macs import StepMacs

app = command_line(
    help="Run one schedule by hand, import a checkpoint, compile a model beforehand, and count what a UNet costs.",
)
app.command()(generate)
app.command("import")(import_checkpoint)


@app.command()
def warm(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    max_wave_rows: Annotated[int, typer.Option(help="As the server's FLEXI_MAX_WAVE_ROWS.")] = 16,
    sizes: Annotated[str, typer.Option(help="As the server's FLEXI_SIZES.")] = "",
    prompt_chunks: Annotated[
        int, typer.Option(min=1, max=MAX_CHUNKS, help="As the server's FLEXI_PROMPT_CHUNKS, where prompts are read in chunks.")
    ] = 3,
    cache: Annotated[Path, typer.Option(help="As the server's FLEXI_COMPILE_CACHE.")] = Path(".flexi/compile"),
) -> None:
    """Compile all that a server with these settings compiles, and keep it in a folder, so that servers start quickly."""
    if not 2 <= max_wave_rows <= MAX_ROWS:
        raise InvalidInput(f"must be between 2 and {MAX_ROWS}, got {max_wave_rows}", param="max_wave_rows")

    from engine import compiling, loading

    compiling.cache_in(cache)
    print(f"compiling {model} for {device}: minutes, if {cache} does not have it yet", file=sys.stderr)
    loaded = loading.load(model, device, dtype, compiled=True)
    chunks = prompt_chunks if loaded.prompts.takes_chunks else 1
    compiled = compiling.warm(loaded, max_wave_rows, others=loaded.other_sizes(sizes_in(sizes)), chunks=chunks)
    print(f"graphs     {compiled.graphs}, {compiled.cached} of them from the cache")
    print(f"seconds    {compiled.seconds:.1f}")
    print(f"cache      {compiling.cache_bytes(cache) / 2**20:.1f} MiB in {cache}")


@app.command()
def macs(
    path: Annotated[Path, typer.Argument(help="A diffusers model folder, or a network's config.json.")],
    size: Annotated[tuple[int, int] | None, typer.Option(help="Latent height and width [default: sample_size].")] = None,
    branch: Annotated[
        str | None, typer.Option(help="Only this branch of the partial steps; of a transformer, blocks at both ends, as 2+1.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Length of the context [default: the text encoder's, else 77].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """MACs of one row (batch 1, no guidance) of a full step and of each partial step. Needs no weights.

    Of a transformer, whose partial steps are many, those that people set by hand; --branch names any. macs counts the products
    of attention too, which torch's FlopCounterMode misses where a CPU runs flash attention.
    """
    config, shape, length = named_unet(path, size, tokens)
    asked = None if branch is None else parse_branch(branch)

    from engine.branches import refuse_branch, usual_branches
    from engine.macs import count_steps

    counted = count_steps(config, shape, length)
    if asked is not None:
        refuse_branch(counted.branches, asked)
    shown = usual_branches(counted.branches) if asked is None else [asked]
    chosen = {said(one): counted.partial[one] for one in shown}
    if as_json:
        features = {said(one): counted.features[one] for one in shown}  # the shape of what a row caches
        full, *partial = ({"macs": one.macs, "paper_macs": one.paper_macs} for one in (counted.full, *chosen.values()))
        by_branch = dict(zip(chosen, partial, strict=True))
        print(json.dumps({"parameters": counted.parameters, "full": full, "partial": by_branch, "features": features}))
    else:
        _print_table(counted, shown, shape, length)


@app.command()
def supported() -> None:
    """Print what loads, what is imported and what is refused: docs/supported.md."""
    from engine.supported import page

    print(page(), end="")


@app.command()
def random(
    size: Annotated[str, typer.Argument(help="sd15, sdxl, tiny, tiny-sdxl, tiny-dit, tiny-pixart, tiny-sd3 or tiny-flux.")],
    out: Annotated[Path, typer.Argument(help="The folder to make: 2.1 GB of sd15 in float16, 6.9 GB of sdxl.")],
    dtype: Annotated[str, typer.Option(help="What the weights are kept in; they load in any.")] = "float16",
) -> None:
    """Make a pipeline folder with random weights of a real model's sizes, to measure with where none can be downloaded."""
    from engine import random_model

    random_model.write(size, out, dtype)
    print(out)


def _print_table(counted: StepMacs, branches: Sequence[Branch], shape: Sequence[int], tokens: int) -> None:
    from rich.console import Console
    from rich.table import Table

    given = f"context of {tokens} token{'s' * (tokens > 1)}" if tokens else "no context"
    table = Table(title=f"{counted.parameters:,} parameters, latent {'×'.join(map(str, shape))}, {given}, one row")
    for column in ("step", "macs", "paper_macs", "of full", "cached, float16"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for branch in (None, *branches):
        name, value, cached = "full", counted.full, ""
        if branch is not None:
            name, value = f"partial, branch {branch}", counted.partial[branch]
            cached = f"{2 * prod(counted.features[branch]) / 2**20:.3f} MiB"
        share = f"{value.macs / counted.full.macs:.4f}"
        table.add_row(name, f"{value.macs / 1e9:.4f} G", f"{value.paper_macs / 1e9:.4f} G", share, cached)
    Console().print(table)


if __name__ == "__main__":
    app()
