"""python -m loadtests.capacity.measure: what a model's calls take on this machine, for `python -m loadtests.capacity --model`.

The model, device and all else are the server's settings (FLEXI_MODEL, FLEXI_DEVICE, FLEXI_DTYPE, FLEXI_COMPILE, …), so that the
calls are those of a server that starts with them. Nothing else should run meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from engine.branches import all_branches, refuse_branch
from loadtests.capacity.curves import Curves
from loadtests.card import FULL, numbered
from loadtests.competitor import loaded
from loadtests.measured_card import measured
from registry.commands.command_line import OneLineErrorsCommand
from registry.errors import InvalidInput, NotFound
from registry.schedule import Schedule, Segment
from server import config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__, cls=OneLineErrorsCommand)
def main(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("curve.json"),
    branch: Annotated[list[int] | None, typer.Option(help="Only these branches of partial steps; repeat.")] = None,
) -> None:
    """Measure, print and write the curves."""
    if not out.parent.is_dir():
        raise NotFound(f"there is no folder {out.parent}", param="out")
    settings = config.load()
    model = loaded(settings)
    branches = branch or [numbered(one) for one in all_branches(model.network.branches)]
    for one in branches:
        refuse_branch(model.network.branches, one)
    if not model.prompts.guides:
        raise InvalidInput("waves are measured with guidance, and this model has none", param="model")
    segments = tuple(Segment(partial=(1,), branch=one) for one in branches)
    schedule = Schedule(model=model.ref, solver=model.solver(model.levels.plain_solver, 2 * len(segments)), segments=segments)
    card = measured(model, schedule, settings)
    about = f"{model.ref.name}, {settings.device}, {settings.dtype}; {card.about}"
    macs = {FULL: float(model.macs.full.macs)} | {one: float(model.macs.partial[one].macs) for one in branches}
    Curves(replace(card, about=about), macs).write(out)
    typer.echo(f"{about}\n{out}")


if __name__ == "__main__":
    app()
