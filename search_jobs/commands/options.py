"""Options that several of the commands of a search have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.compile_choice import CompileChoice
from engine.guidance import MAX_SCALE, meant
from registry.errors import InvalidInput

Run = Annotated[Path, typer.Argument(help="The run folder.")]
ModelName = Annotated[str | None, typer.Option(help="What schedules call the model [default: made of its folder's name].")]
Guidance = Annotated[float | None, typer.Option(help="Scale, 0 to 30; 1 or less is off [default: the model's own].")]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", help="WIDTHxHEIGHT in pixels; repeat: the first one decides [default: the model's own]."),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Images in a UNet call, at most [default: 8; on a GPU 64, or what its memory holds]."),
]
Compile = Annotated[CompileChoice, typer.Option("--compile", help="torch.compile; auto: on GPUs.")]
FEATURES_HELP = "A CLIP or classifier folder, or FID's InceptionV3 weights [default: MODEL/features, else MODEL/clip]."
Registry = Annotated[str, typer.Option(envvar="FLEXI_REGISTRY", help="A folder or s3://bucket/prefix.")]


def guidance_scale(asked: float | None, usual: float) -> float:
    """The guidance scale that was asked for, else the usual one. Raises `InvalidInput` outside of the limits."""
    scale = usual if asked is None else asked
    if not 0 <= scale <= MAX_SCALE:
        raise InvalidInput(f"must be from 0 to {MAX_SCALE:g}, got {scale:g}", param="guidance")
    return meant(scale)
