"""python -m server.experiments shadow: a candidate for a tier, made in idle time, before anybody gets an image of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from registry.commands.command_line import EXIT_CODES, command_line
from registry.commands.display import console, minute, print_json, print_table
from registry.commands.options import AsJson, Model, Reason, Registry, Tier, open_catalog
from registry.experiments.candidates import CandidateCatalog, CandidateState, candidate_of
from registry.schedule import Schedule
from registry.stores.address import DEFAULT_ADDRESS
from server.experiments.analysis.shadow_report import as_json, as_tables, shadow_report

HOURS = 24

app = command_line(
    help="Let a candidate make a share of a tier's images again in idle time, and compare it with what the tier means.",
    epilog=f"{EXIT_CODES} The guide is docs/experiments.md.",
)

CandidateRef = Annotated[str, typer.Argument(metavar="REF", help="A version number, or a digest's first 8 digits or more.")]
Share = Annotated[float, typer.Option("--share", min=0.0001, max=1, help="Of the tier's finished images.")]
Until = Annotated[
    datetime | None,
    typer.Option("--until", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help=f"In UTC; without it, for {HOURS} hours."),
]


@app.command()
def start(
    tier: Tier,
    ref: CandidateRef,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    share: Share = 0.1,
    until: Until = None,
    reason: Reason = "",
    json_: AsJson = False,
) -> None:
    """Declare a tier's candidate: servers follow within their watch interval. Again, for another share or end."""
    catalog = open_catalog(registry, model)
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC) + timedelta(hours=HOURS)
    candidate = candidate_of(catalog, tier, ref, share, end)
    state = CandidateCatalog(catalog.store, catalog.model).start(candidate, reason)
    schedule = catalog.schedule(candidate.digest)  # garbage collection may have come between; now that it is named it will not
    if note := _of_other_scales(schedule, catalog.schedule(catalog.alias(tier).digest)):
        typer.echo(note, err=True)
    _say(state, json_)


@app.command()
def stop(
    tier: Tier, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", json_: AsJson = False
) -> None:
    """Withdraw a tier's candidate. What was recorded stays; `report` still answers."""
    catalog = open_catalog(registry, model)
    _say(CandidateCatalog(catalog.store, catalog.model).stop(tier, reason), json_)


@app.command()
def status(registry: Registry = DEFAULT_ADDRESS, model: Model = None, json_: AsJson = False) -> None:
    """Which tiers have a candidate, and who declared it."""
    catalog, now = open_catalog(registry, model), datetime.now(UTC)
    states = list(CandidateCatalog(catalog.store, catalog.model).all())
    if json_:
        print_json([state.model_dump(mode="json") for state in states])
        return
    lines = []
    meant = {alias.tier: alias.digest for alias in catalog.aliases()}
    for state in states:
        move, one = state.history[-1], state.newest
        runs = state.status(meant.get(one.tier), now)
        who = f"{move.author}@{move.host}"
        lines.append((one.tier, one.version, one.digest[:8], runs, f"{one.share:.0%}", minute(one.until), who, move.reason))
    columns = ("tier", "version", "digest", "status", "share", "until (UTC)", "who", "reason")
    print_table(f"{catalog.model}: candidates", columns, lines)


@app.command()
def report(tier: Tier, registry: Registry = DEFAULT_ADDRESS, model: Model = None, json_: AsJson = False) -> None:
    """The candidate beside what the tier means, paired image by image. Look as often as you like."""
    catalog = open_catalog(registry, model)
    page = shadow_report(catalog, CandidateCatalog(catalog.store, catalog.model).state(tier), datetime.now(UTC))
    if json_:
        print_json(as_json(page))
    else:
        console().print(as_tables(page))


def _of_other_scales(candidate: Schedule, active: Schedule) -> str | None:
    """What is to be said where both were validated, and not at the same guidance scales."""
    scales = [", ".join(f"{scale:g}" for scale in one.validated.guidance) for one in (candidate, active) if one.validated]
    if len(set(scales)) < 2:
        return None
    return (
        f"note: it was validated at guidance {scales[0]}, what the tier means at {scales[1]}: both make what requests ask for"
    )


def _say(state: CandidateState, json_: bool) -> None:
    if json_:
        print_json(state.model_dump(mode="json"))
        return
    one, move = state.newest, state.history[-1]
    called = f"version {one.version} ({one.digest[:8]})"
    if move.action == "stop":
        typer.echo(f"tier {state.tier} has no candidate any more: {called} was withdrawn")
    else:
        typer.echo(
            f"{called} is the candidate of tier {state.tier}: {one.share:.0%} of its images until {minute(one.until)} UTC"
        )
