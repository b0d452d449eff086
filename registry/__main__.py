"""python -m registry: look at schedules, publish them, move tiers; `commands.maintenance` keeps a registry in order."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from registry.audit_trail import approval_acts, audited_moves, candidate_moves, experiment_transitions
from registry.catalog import Catalog
from registry.commands import approvals, maintenance, site
from registry.commands.approvals import Signer, request_promotion, signing_key
from registry.commands.command_line import EXIT_CODES, command_line
from registry.commands.display import (
    COLUMNS,
    cells,
    console,
    facts,
    facts_of,
    legend,
    minute,
    print_alias,
    print_candidates,
    print_difference,
    print_json,
    print_moves,
    print_table,
    print_transitions,
    strip,
    teacher_steps,
)
from registry.commands.options import AsJson, Files, Key, Last, Model, Note, Reason, Ref, Registry, Tier, open_catalog
from registry.diff import Difference
from registry.errors import FlexiError, InvalidInput
from registry.schedule import Schedule
from registry.stores.address import DEFAULT_ADDRESS, open_store

app = command_line(
    help="Look at schedules, publish them, move tiers, and keep the registry in order.",
    epilog=f"{EXIT_CODES} `verify` also ends with 1 where it finds damage. "
    "An s3:// registry takes its endpoint from FLEXI_S3_ENDPOINT and its credentials where the AWS tools find them.",
)


@app.command("list")
def list_(registry: Registry = DEFAULT_ADDRESS, model: Model = None, last: Last = 20, as_json: AsJson = False) -> None:
    """Tiers and versions, with their steps, cost and fidelity."""
    catalog = open_catalog(registry, model)
    aliases, versions = catalog.aliases(), catalog.versions(last)
    digests = {alias.digest for alias in aliases} | {version.digest for version in versions}
    known = {digest: facts_of(catalog, digest) for digest in digests}
    if as_json:
        tiers = [alias.model_dump(mode="json", exclude={"history", "archived"}) | known[alias.digest] for alias in aliases]
        records = [version.model_dump(mode="json") | known[version.digest] for version in versions]
        print_json({"model": catalog.model, "tiers": tiers, "versions": records})
        return
    steps = teacher_steps(aliases, known)
    print_table(
        f"{catalog.model}: tiers",
        ("tier", "version", *COLUMNS),
        [(alias.tier, alias.version, *cells(known[alias.digest], steps)) for alias in aliases],
    )
    print_table(
        f"{catalog.model}: versions (the newest {len(versions)})",
        ("version", *COLUMNS, "time (UTC)", "note"),
        [(one.number, *cells(known[one.digest], steps), minute(one.time), one.note) for one in versions],
    )


@app.command()
def show(ref: Ref, registry: Registry = DEFAULT_ADDRESS, model: Model = None, as_json: AsJson = False) -> None:
    """One schedule: its steps as a strip, and what is known of it."""
    schedule, version, tier = open_catalog(registry, model).resolve(ref)
    document = json.loads(schedule.document())
    if as_json:
        print_json({"tier": tier, "version": version, **facts(schedule), "schedule": document})
        return
    screen = console()
    screen.print(strip(schedule.steps()))
    screen.print(legend(schedule))
    del document["format"], document["segments"]  # the strip says it better
    for name, value in {"tier": tier, "version": version, "digest": schedule.digest, **document}.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            screen.print(Text.assemble((f"{name:<11} ", "bold"), text))


@app.command()
def publish(
    files: Files,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    note: Note = "",
    sign: Annotated[
        Path | None, typer.Option("--sign", help="Sign them with this private key (Ed25519, PEM): see keygen.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep schedules and give them version numbers. All files are checked before the first one is published."""
    schedules, key = [_read(path) for path in files], signing_key(sign)
    for schedule, path in zip(schedules, files, strict=True):
        if model and schedule.model.name != model:
            raise InvalidInput(f"{path} is for {schedule.model.name}, not {model}", param="model.name")
    store = open_store(registry)
    versions = []
    for schedule in schedules:
        catalog = Catalog(store, model or schedule.model.name)
        versions.append(catalog.publish(schedule, note))
        if key:
            catalog.sign(schedule, key)
    if as_json:
        print_json([version.model_dump(mode="json") for version in versions])
        return
    for version, path in zip(versions, files, strict=True):
        typer.echo(f"version {version.number}  {version.digest[:8]}  {path}")


@app.command("sign")
def sign_(ref: Ref, key: Key, registry: Registry = DEFAULT_ADDRESS, model: Model = None) -> None:
    """Vouch for a schedule that is published already: its steps and everything it says of itself."""
    catalog, signer = open_catalog(registry, model), signing_key(key)
    assert signer, "the option has no default"
    schedule = catalog.resolve(ref).schedule
    catalog.sign(schedule, signer)
    typer.echo(f"{schedule.digest[:8]} is signed by {signer.id}")


@app.command()
def keygen(file: Annotated[Path, typer.Argument(help="Where the private key goes; the public one lies beside it.")]) -> None:
    """Make a key to sign with. Keep FILE to yourself; give the public half to the servers (FLEXI_TRUSTED_KEYS)."""
    from registry.signing import SigningKey

    key, public = SigningKey.make(file)
    typer.echo(f"{key.id}: sign with {file}, trust {public}")


@app.command()
def promote(
    tier: Tier,
    ref: Ref,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    reason: Reason = "",
    key: Signer = None,
    as_json: AsJson = False,
) -> None:
    """Let a tier mean another schedule; a name that no tier has makes a new tier, and says so.

    Where the policy says that the tier takes a second person, this makes a request, which `approve` carries out.
    """
    catalog = open_catalog(registry, model)
    if catalog.approvals.guards(tier):
        request_promotion(catalog, tier, ref, reason, key, as_json)
        return
    others = catalog.tiers()
    print_alias(catalog.promote(tier, ref, reason), as_json, others=None if tier in others else others)


@app.command()
def rollback(
    tier: Tier, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Let a tier mean again what it meant before."""
    print_alias(open_catalog(registry, model).rollback(tier, reason), as_json)


@app.command()
def history(
    tier: Tier,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many, the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """All that a tier has meant, the newest last."""
    moves = open_catalog(registry, model).history(tier, last)
    if as_json:
        print_json([move.model_dump(mode="json") for move in moves])
        return
    lines = ((minute(move.time), move.version, move.digest[:8], move.author, move.reason) for move in moves)
    print_table(f"history of {tier}", ("time (UTC)", "version", "digest", "author", "reason"), lines)


@app.command()
def diff(
    a: Ref,
    b: Ref,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """What changes from schedule A to schedule B: steps, segments, cost and fidelity."""
    catalog = open_catalog(registry, model)
    difference = Difference(catalog.resolve(a).schedule, catalog.resolve(b).schedule)
    if as_json:
        print_json({"a": facts(difference.a), "b": facts(difference.b), **difference.document()})
        return
    print_difference(difference, a, b)


@app.command()
def audit(
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Only moves of this tier, and no experiments.")] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Only from this time (UTC) on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Who moved which tier, candidate or experiment, when, from where, and why; the newest last."""
    catalog, since = open_catalog(registry, model), since and since.replace(tzinfo=UTC)
    acts = [] if tier else approval_acts(catalog, since)
    moves, transitions = audited_moves(catalog, tier, since), [] if tier else experiment_transitions(catalog, since)
    candidates = candidate_moves(catalog, tier, since)
    if as_json:
        lines = [move.audit.model_dump(mode="json") | {"written": move.written} for move in moves]
        lines += [{"experiment": name, **transition.model_dump(mode="json")} for name, transition in transitions]
        lines += [move.model_dump(mode="json") for move in candidates]
        lines += [{"approval": what, "who": act.who, **by.model_dump(mode="json")} for act in acts for what, by in [act]]
        print_json(sorted(lines, key=lambda line: str(line["time"])))
        return
    print_moves(moves)
    if candidates:
        print_candidates(candidates)
    if transitions:
        print_transitions(transitions)
    if acts:
        said = [(minute(act.by.time), act.what, act.who, act.by.reason) for act in acts]
        print_table("second persons", ("time (UTC)", "what", "who", "reason"), said)


def _read(path: Path) -> Schedule:
    try:
        return Schedule.parse(path.read_bytes())
    except FlexiError as error:
        raise type(error)(f"{error.text} (in {path})", param=error.param) from error


app.add_typer(approvals.app)
app.add_typer(maintenance.app)
app.add_typer(site.app)

if __name__ == "__main__":
    app(prog_name="python -m registry")
