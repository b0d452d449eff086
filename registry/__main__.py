"""python -m registry: look at schedules, publish them, and move tiers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.address import open_catalog, open_store
from registry.catalog import Catalog
from registry.cli import command_line
from registry.errors import FlexiError
from registry.records import Alias
from registry.schedule import Kind, Schedule

if TYPE_CHECKING:
    from registry.signing import SigningKey

KEY = "A private key (Ed25519, PEM): see keygen."
DEFAULT = ".flexi/registry"
STRIP: dict[Kind, tuple[str, str]] = {
    "full": ("F", "black on green"),
    "partial": ("p", "black on yellow"),
    "null": (".", "dim"),
}


app = command_line(
    help="Look at schedules, publish them, and move tiers.",
    epilog="Exit codes: 0 done; 1 not possible, one line on stderr says why; 2 wrong usage. "
    "An s3:// registry takes its endpoint from FLEXI_S3_ENDPOINT and its credentials where the AWS tools find them.",
)

Registry = Annotated[str, typer.Option("--registry", envvar="FLEXI_REGISTRY", help="A folder or s3://bucket/prefix.")]
Model = Annotated[str | None, typer.Option("--model", help="The model; needed where the registry has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why: it stays in the tier's history.")]
Ref = Annotated[str, typer.Argument(help="A tier, a version number, or a digest's first 8 digits or more.")]
Tier = Annotated[str, typer.Argument(help="The name of a tier.")]
Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, help="Schedule documents.")]
Note = Annotated[str, typer.Option("--note", "-m", help="What these schedules are: it stays with their versions.")]
Last = Annotated[int, typer.Option("--last", min=1, help="Show this many versions, the newest.")]


@app.command("list")
def list_(registry: Registry = DEFAULT, model: Model = None, last: Last = 20, as_json: AsJson = False) -> None:
    """Tiers and versions, with their steps, cost and fidelity."""
    catalog = open_catalog(registry, model)
    aliases, versions = catalog.aliases(), catalog.versions(last)
    digests = {each.digest for each in aliases} | {each.digest for each in versions}
    facts = {digest: _facts(catalog.schedule(digest)) for digest in digests}
    if as_json:
        tiers = [each.model_dump(mode="json", exclude={"history"}) | facts[each.digest] for each in aliases]
        numbers = [each.model_dump(mode="json") | facts[each.digest] for each in versions]
        _print_json({"model": catalog.model, "tiers": tiers, "versions": numbers})
        return
    columns = ("steps", "cost", "rFID", "PSNR", "digest")
    _print_table(
        f"{catalog.model}: tiers (steps: full/partial/null)",
        ("tier", "version", *columns),
        [(each.tier, each.version, *_cells(facts[each.digest])) for each in aliases],
    )
    _print_table(
        f"{catalog.model}: versions (the newest {len(versions)})",
        ("version", *columns, "time (UTC)", "note"),
        [(each.number, *_cells(facts[each.digest]), _minute(each.time), each.note) for each in versions],
    )


@app.command()
def show(ref: Ref, registry: Registry = DEFAULT, model: Model = None, as_json: AsJson = False) -> None:
    """One schedule: its steps as a strip, and what is known of it."""
    schedule, version, tier = open_catalog(registry, model).resolve(ref)
    document = json.loads(schedule.document())
    if as_json:
        _print_json({"tier": tier, "version": version, **_facts(schedule), "schedule": document})
        return
    strip = Text()
    for step in schedule.steps():
        strip.append(*STRIP[step.kind])
    counts = schedule.counts()
    legend = ", ".join(f"{STRIP[kind][0]} {kind} {counts[kind]}" for kind in counts)
    console = Console(highlight=False)
    console.print(strip)
    console.print(f"{legend}; from noise to image", style="dim")
    del document["format"], document["segments"]  # the strip says it better
    for name, value in {"tier": tier, "version": version, "digest": schedule.digest, **document}.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            console.print(Text.assemble((f"{name:<11} ", "bold"), text))


@app.command()
def publish(
    files: Files,
    registry: Registry = DEFAULT,
    model: Model = None,
    note: Note = "",
    sign: Annotated[Path | None, typer.Option("--sign", help=KEY)] = None,
    as_json: AsJson = False,
) -> None:
    """Keep schedules and give them version numbers. All files are checked before the first one is published."""
    schedules, key = [_read(path) for path in files], _signing_key(sign) if sign else None
    store = open_store(registry)
    versions = []
    for schedule in schedules:
        catalog = Catalog(store, model or schedule.model.name)
        versions.append(catalog.publish(schedule, note))
        if key:
            catalog.sign(schedule, key)
    if as_json:
        _print_json([version.model_dump(mode="json") for version in versions])
        return
    for version, path in zip(versions, files, strict=True):
        typer.echo(f"version {version.number}  {version.digest[:8]}  {path}")


@app.command("sign")
def sign_(
    ref: Ref, key: Annotated[Path, typer.Option("--key", help=KEY)], registry: Registry = DEFAULT, model: Model = None
) -> None:
    """Vouch for a schedule that is published already: its steps and everything it says of itself."""
    catalog, signer = open_catalog(registry, model), _signing_key(key)
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
    registry: Registry = DEFAULT,
    model: Model = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a tier mean another schedule."""
    _print_alias(open_catalog(registry, model).promote(tier, ref, reason), as_json)


@app.command()
def rollback(
    tier: Tier, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Let a tier mean again what it meant before."""
    _print_alias(open_catalog(registry, model).rollback(tier, reason), as_json)


@app.command()
def history(tier: Tier, registry: Registry = DEFAULT, model: Model = None, as_json: AsJson = False) -> None:
    """All that a tier has meant, the newest last."""
    entries = open_catalog(registry, model).history(tier)
    if as_json:
        _print_json([entry.model_dump(mode="json") for entry in entries])
        return
    rows = ((_minute(each.time), each.version, each.digest[:8], each.author, each.reason) for each in entries)
    _print_table(f"history of {tier}", ("time (UTC)", "version", "digest", "author", "reason"), rows)


def _signing_key(path: Path) -> SigningKey:
    from registry.signing import SigningKey  # cryptography takes a moment to import: only who signs pays

    return SigningKey.read(path)


def _read(path: Path) -> Schedule:
    try:
        return Schedule.parse(path.read_bytes())
    except FlexiError as error:
        raise type(error)(f"{path}: {error.message}", param=error.param) from error


def _facts(schedule: Schedule) -> dict[str, Any]:
    described = schedule.model_dump(mode="json", include={"cost", "fidelity"})
    return {"digest": schedule.digest, "steps": schedule.counts(), **described}


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    """Steps, cost, rFID, PSNR and digest as a row shows them; a dash for what was never measured."""
    cost, fidelity = facts["cost"], facts["fidelity"]
    return (
        "/".join(str(count) for count in facts["steps"].values()),
        f"{cost['relative']:.3f}" if cost else "-",
        f"{fidelity['rfid']:.2f}" if fidelity else "-",
        f"{fidelity['psnr']:.1f}" if fidelity else "-",
        facts["digest"][:8],
    )


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _print_alias(alias: Alias, as_json: bool) -> None:
    if as_json:
        _print_json(alias.model_dump(mode="json", exclude={"history"}))
        return
    typer.echo(f"{alias.tier} means version {alias.version}  {alias.digest[:8]}")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in ("note", "reason", "author"))
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: a note in [brackets] is no markup
    Console(highlight=False).print(table)


if __name__ == "__main__":
    app(prog_name="python -m registry")
