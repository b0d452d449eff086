"""How schedules, tiers and times look in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.audit_trail import AuditedMove, ExperimentTransition
from registry.catalog import Catalog
from registry.diff import Difference
from registry.errors import NotFound, Tampered
from registry.experiments.candidates import CandidateMove
from registry.records import Alias
from registry.schedule import Kind, Schedule, Segment, Step
from registry.tiers import REFERENCE

STRIP: dict[Kind, tuple[str, str]] = {
    "full": ("F", "black on green"),
    "partial": ("p", "black on yellow"),
    "null": (".", "dim"),
}
COMPUTED_STEPS = "computed steps\n(full+partial)"  # the heading of `computed_steps`
COLUMNS = (COMPUTED_STEPS, "cost", "rFID", "PSNR", "digest")  # of `cells`
WRAPPED = ("note", "reason", "author", "host", "what", "outcome")

Facts = dict[str, Any]


def console() -> Console:
    """Where people read: as wide as their terminal. A log or a pipe has no width, and the usual 80 would break every line."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def strip(steps: Iterable[Step]) -> Text:
    """One letter for each step, from noise to image."""
    text = Text()
    for step in steps:
        text.append(*STRIP[step.kind])
    return text


def legend(schedule: Schedule) -> Text:
    """What the letters of a strip mean, how many there are of each, and how many steps are computed."""
    counts = schedule.counts()
    letters = ", ".join(f"{STRIP[kind][0]} {kind} {counts[kind]}" for kind in counts)
    where = " at timesteps of their own" if schedule.timesteps else ""
    text = f"{letters}; from noise to image: {schedule.computed} of {schedule.solver.teacher_steps} steps are computed{where}"
    return Text(text, style="dim")


def computed_steps(counts: Mapping[Kind, int], teacher_steps: int | None) -> str:
    """Such as "24 of 50 (12+12)": the computed steps, of how many the teacher takes where that is known, as full + partial.

    Null steps are left out: they are no work, and where computed steps have timesteps of their own they lie nowhere.
    """
    full, partial = counts["full"], counts["partial"]
    total = f" of {teacher_steps}" if teacher_steps is not None else ""
    return f"{full + partial}{total} ({full}+{partial})"


def teacher_steps(aliases: Iterable[Alias], known: Mapping[str, Facts]) -> int | None:
    """How many steps the teacher takes, which the tier `reference` is; None where it is missing or damaged."""
    references = (known[alias.digest]["steps"] for alias in aliases if alias.tier == REFERENCE)
    return next((sum(steps.values()) for steps in references if steps), None)


def facts(schedule: Schedule) -> Facts:
    """Digest, steps, cost and fidelity, for JSON and for `cells`."""
    described = schedule.model_dump(mode="json", include={"cost", "fidelity"})
    return {"digest": schedule.digest, "steps": schedule.counts(), **described}


def facts_of(catalog: Catalog, digest: str) -> Facts:
    """The facts of the schedule with this digest. One that is gone or damaged must not hide others: it has an `error`."""
    try:
        return facts(catalog.schedule(digest))
    except (NotFound, Tampered) as error:
        state = "gone" if isinstance(error, NotFound) else "damaged"
        return {"digest": digest, "steps": None, "cost": None, "fidelity": None, "state": state, "error": error.message}


def cells(known: Facts, teacher_steps: int | None) -> tuple[str, ...]:
    """The facts of a schedule under `COLUMNS`; a dash for what was never measured."""
    steps, cost, fidelity = known["steps"], known["cost"], known["fidelity"]
    return (
        computed_steps(steps, teacher_steps) if steps else known["state"],
        f"{cost['relative']:.3f}" if cost else "-",
        f"{fidelity['rfid']:.2f}" if fidelity else "-",
        f"{fidelity['psnr']:.1f}" if fidelity else "-",
        known["digest"][:8],
    )


def minute(time: datetime) -> str:
    """A time in UTC, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def print_alias(alias: Alias, as_json: bool, others: Iterable[str] | None = None) -> None:
    """Print what a tier means now; `others` are the tiers that there were before it, where it is new."""
    if as_json:
        print_json(alias.model_dump(mode="json", exclude={"history", "archived"}))
        return
    new = "" if others is None else f"  (new tier; before it: {', '.join(sorted(others)) or 'none'})"
    typer.echo(f"{alias.tier} means version {alias.version}  {alias.digest[:8]}{new}")


def print_json(value: object) -> None:
    """Print JSON, for scripts."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a table, for people; a note in [brackets] is no markup. Columns other than `WRAPPED` stay on one line."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in WRAPPED, min_width=16 if column in ("note", "reason") else None)
    for line in lines:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in line))
    console().print(table)


def print_moves(moves: Sequence[AuditedMove]) -> None:
    """Print moves of tiers; those without an audit entry are marked."""
    lines = []
    for audit, written in moves:
        before = audit.before.version if audit.before else "-"
        reason = audit.reason if written else f"{audit.reason} (without audit entry)".strip()
        versions = f"{before} → {audit.after.version}"
        lines.append((minute(audit.time), audit.tier, audit.action, versions, audit.author, audit.host, reason))
    print_table("audit trail", ("time (UTC)", "tier", "action", "version", "author", "host", "reason"), lines)


def print_transitions(transitions: Sequence[ExperimentTransition]) -> None:
    """Print what was done with experiments."""
    lines = [
        (minute(one.time), name, one.action, one.status, str(one.version), one.author, one.host, one.reason)
        for name, one in transitions
    ]
    columns = ("time (UTC)", "experiment", "action", "status", "version", "author", "host", "reason")
    print_table("audit trail of experiments", columns, lines)


def print_candidates(moves: Sequence[CandidateMove]) -> None:
    """Print which candidates were declared and withdrawn."""
    lines = []
    for move in moves:
        what, who = move.candidate, (move.author, move.host, move.reason)
        lines.append((minute(move.time), what.tier, move.action, what.version, what.share, minute(what.until), *who))
    columns = ("time (UTC)", "tier", "action", "version", "share", "until (UTC)", "author", "host", "reason")
    print_table("audit trail of candidates", columns, lines)


def print_difference(difference: Difference, a: str, b: str) -> None:
    """Print two strips, a mark under every step that differs, and what else differs."""
    screen, wide = console(), max(len(a), len(b))
    for ref, schedule in ((a, difference.a), (b, difference.b)):
        screen.print(Text(f"{ref:<{wide}}  ", style="bold") + strip(schedule.steps()))
    if steps := difference.steps:
        marks = "".join("^" if i in steps else " " for i in range(steps[-1] + 1))
        screen.print(Text(" " * (wide + 2) + marks))
    for change in difference.segments or ():
        text = f"segment {change.segment}, steps {change.first} to {change.last}: "
        screen.print(Text(f"{text}{_partial(change.a)} → {_partial(change.b)}"))
    for name, sides in difference.fields.items():
        screen.print(Text.assemble((f"{name} ", "bold"), " → ".join(_short(side) for side in sides)))
    if difference.a.digest == difference.b.digest:
        screen.print("the same schedule")
    figures = {"computed steps": (difference.a.computed, difference.b.computed), **difference.figures}
    del figures["null steps"]  # what is left of the trajectory; `solver.teacher_steps` says how long that is
    lines = [(name, _figure(one), _figure(other), _change(one, other)) for name, (one, other) in figures.items()]
    print_table("figures", ("", a, b, "change"), lines)


def _partial(segment: Segment) -> str:
    if not segment.partial:
        return "no partial step"
    return f"partial at {', '.join(map(str, segment.partial))}, branch {segment.computes}"


def _short(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} …"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def _change(one: float | None, other: float | None) -> str:
    if one is None or other is None or one == other:
        return ""
    return f"{other - one:+,.4g}" + (f" ({(other - one) / abs(one):+.1%})" if one else "")
