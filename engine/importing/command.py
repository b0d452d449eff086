"""python -m engine import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.errors import InvalidInput


def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="A single file of Stable Diffusion 1, 2 or XL, or a diffusers folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make; whole or not at all.")],
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:SCALE, as style.safetensors:0.8; several times, if you like.")
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="A file with an autoencoder that takes the place of the model's.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A diffusers folder with the configurations of a file of other sizes than the published."),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="epsilon or v: what the UNet predicts, where the file does not say it (Stable Diffusion 2)."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Of the images that it was trained on, in pixels [default: as its kind was published].")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights of the UNet, where the file has both.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .ckpt, .pt and .bin files too; nothing in them is run.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Import weights that are NaN or infinite too, as they are.")
    ] = False,
) -> None:
    """Make a diffusers folder of a checkpoint as model sites distribute it, with LoRAs fused into it. Needs no network."""
    if prediction not in (None, "epsilon", "v"):
        raise InvalidInput(f"must be epsilon or v, got {prediction}", param="prediction")
    if size is not None and (size < 64 or size % 64):
        raise InvalidInput(f"must be a multiple of 64 pixels, got {size}", param="size")

    from engine.importing.model_import import ImportOptions, import_model

    options = ImportOptions(source, out, tuple(lora or ()), vae, config, prediction, size, ema, allow_pickle, allow_nonfinite)
    imported = import_model(options)
    typer.echo(f"model      {imported.what}")
    for note in imported.notes:
        typer.echo(f"note       {note}")
    typer.echo(f"folder     {out}, {imported.fingerprint}")
