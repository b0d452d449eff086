"""python -m loadtests.capacity: how many GPUs a load needs, and what it would see on fewer and on more.

The policy that forms waves, the queue, the tiers' shares and admission are the server's own, on a virtual clock; what calls
take comes from measured curves. Nothing is served, and no GPU is needed.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.capacity.cluster import Balancer, Load, Outcome, simulate
from loadtests.capacity.curves import read_curves
from loadtests.capacity.gpu import ServerSettings
from loadtests.capacity.images import TierPlan
from loadtests.capacity.plan import Promise, plan
from loadtests.capacity.report import plot, table
from loadtests.mixes import mixes
from registry.catalog import Catalog
from registry.commands.command_line import OneLineErrorsCommand
from registry.errors import InvalidInput
from registry.schedule import Schedule
from registry.stores.address import open_store

LASTING = 10  # times the promised seconds: for so long the load comes at least

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__, cls=OneLineErrorsCommand)
def main(
    rate: Annotated[float, typer.Option(min=1e-3, help="Requests a second, for one image each, at random times.")] = 40.0,
    mix: Annotated[str, typer.Option(help="How often each tier is wanted.")] = "draft:6,balanced:3,reference:1",
    model: Annotated[
        str,
        typer.Option(help="A file of measured curves (loadtests.measured_card), or captured or eager: one H100 with SD v1.5."),
    ] = "captured",
    registry: Annotated[str | None, typer.Option(help="Whose tiers are served [default: those of loadtests.mixes].")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the registry.")] = None,
    instead: Annotated[list[str] | None, typer.Option(help="TIER=OTHER: what a cheaper tier would save; repeat.")] = None,
    gpus: Annotated[str, typer.Option(help="FEWEST..MOST.")] = "1..64",
    p95: Annotated[float, typer.Option(min=1e-3, help="Promised: seconds for 95 % of every tier's answered requests.")] = 5.0,
    refused: Annotated[float, typer.Option(min=0, max=1, help="Promised: the largest share of requests refused.")] = 0.01,
    balancer: Annotated[Balancer, typer.Option(help="How requests find their server.")] = "least-queue",
    seen: Annotated[float, typer.Option(min=0, help="How old in seconds what it knows of the queues is at most.")] = 0.0,
    max_wave_rows: Annotated[int, typer.Option(min=2, help="As the server's FLEXI_MAX_WAVE_ROWS.")] = 16,
    max_queue_seconds: Annotated[float, typer.Option(min=0.1, help="As the server's FLEXI_MAX_QUEUE_SECONDS.")] = 30.0,
    guided: Annotated[bool, typer.Option(help="With classifier-free guidance an image takes two UNet rows.")] = True,
    requests: Annotated[
        int, typer.Option(min=100, help="How many are simulated for each number of GPUs; more, where these are over too soon.")
    ] = 10_000,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="A PNG file for the plot.")] = None,
) -> None:
    """Print what each number of GPUs that was tried would see, and the fewest that keep the promise."""
    curves, wanted, (least, most) = read_curves(model), _mix(mix), _range(gpus)
    schedules = _schedules(registry, name, wanted)
    plans = {tier: TierPlan.of(tier, one, curves.macs, 2 if guided else 1) for tier, one in schedules.items()}
    settings = ServerSettings(max_wave_rows, max_queue_seconds, graphs=model != "eager")
    alone = {tier: one.alone_seconds(curves.card) for tier, one in plans.items() if tier in wanted}
    if (slowest := max(alone, key=lambda tier: alone[tier])) and alone[slowest] > p95:
        message = f"no number of GPUs keeps it: an image of {slowest} alone takes {alone[slowest]:.2f} s, got {p95:g}"
        raise InvalidInput(message, param="p95")
    requests = max(requests, ceil(rate * max(LASTING * p95, 2 * max_queue_seconds)))  # else queues are not as long as they get
    load, promise, console = Load(rate, wanted, requests, seed), Promise(p95, refused), Console()
    console.print(f"SIMULATION by measured curves: {curves.card.about}")

    def planned(served: dict[str, TierPlan], title: str) -> int | None:
        def run(count: int) -> Outcome:
            return simulate(curves.card, served, load, count, balancer, settings, seen)

        found = plan(run, promise, least, most)
        console.print(table(found, list(wanted), title))
        kept = f"{found.needed} GPUs keep it" if found.needed else f"{most} GPUs do not keep it"
        console.print(f"promise    p95 of every tier within {p95:g} s, {refused:.1%} refused at most: {kept}")
        if out:
            plot(found, list(wanted), promise, out)
        return found.needed

    needed = planned(plans, f"{rate:g} requests a second, {balancer}")
    for change in instead or ():
        tier, _, other = change.partition("=")
        if tier not in plans or other not in plans:
            raise InvalidInput(f"must be TIER=OTHER of {', '.join(plans)}, got {change!r}", param="instead")
        out = None
        fewer = planned(plans | {tier: _called(tier, plans[other])}, f"the same, with {other}'s schedule as {tier}")
        if needed and fewer:
            console.print(f"saves      {needed - fewer} of {needed} GPUs")


def _mix(text: str) -> dict[str, float]:
    try:
        shares = {tier.strip(): float(weight) for tier, weight in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise InvalidInput(f"must be TIER:WEIGHT with commas between, got {text!r}", param="mix") from None
    if not all(0 < weight < float("inf") for weight in shares.values()):
        raise InvalidInput("weights must be finite and above 0", param="mix")
    return shares


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("..")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise InvalidInput(f"must be FEWEST..MOST, from 1 on, got {text!r}", param="gpus")
    return int(least), int(most or least)


def _schedules(registry: str | None, name: str | None, wanted: dict[str, float]) -> dict[str, Schedule]:
    """Of every tier that there is. Raises `InvalidInput` for a wanted one that there is not."""
    if registry is None:
        known = dict(mixes()["partial"].schedules)
    else:
        if name is None:
            raise InvalidInput("say the model's name in the registry", param="name")
        catalog = Catalog(open_store(registry), name)
        known = {tier: catalog.resolve(tier)[0] for tier in catalog.tiers()}
    if strange := [tier for tier in wanted if tier not in known]:
        raise InvalidInput(f"there is no tier {strange[0]!r}: the tiers are {', '.join(known)}", param="mix")
    return known


def _called(tier: str, other: TierPlan) -> TierPlan:
    return TierPlan(tier, other.needs, other.macs_before, other.unet_rows)


if __name__ == "__main__":
    app()
