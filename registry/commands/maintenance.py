"""The commands that keep a registry in order: verify, gc, export, import."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from registry.bundle import Bundle
from registry.catalog import Catalog
from registry.commands.display import print_json, print_table
from registry.commands.options import AsJson, Model, Registry, approved_tiers, open_catalog
from registry.gc import GarbageCollector
from registry.stores.address import DEFAULT_ADDRESS, open_store
from registry.verify import Verification

app = typer.Typer()

Days = Annotated[
    float, typer.Option("--days", min=0, max=36_500, help="Keep what was published, or meant by a tier, in so many days.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")]
Trusted = Annotated[
    Path | None,
    typer.Option("--trusted-keys", envvar="FLEXI_TRUSTED_KEYS", help="Also demand a signature by one of these public keys."),
]


@app.command()
def verify(registry: Registry = DEFAULT_ADDRESS, model: Model = None, trusted: Trusted = None, as_json: AsJson = False) -> None:
    """Read everything and tell all that is damaged. Exit code 1 if anything is."""
    keys = None
    if trusted:
        from registry.signing import TrustedKeys  # cryptography takes a moment to import: only who checks signatures pays

        keys = TrustedKeys.read(trusted)
    catalog = open_catalog(registry, model, keys)
    verified = Verification(catalog)
    objects, damaged = len(verified.keys), len(verified.damage)
    if as_json:
        findings = [asdict(finding) for finding in verified.findings]
        print_json({"model": catalog.model, "objects": objects, "damaged": damaged, "findings": findings})
    else:
        for finding in sorted(verified.findings, key=lambda finding: not finding.damage):
            typer.echo(f"{'DAMAGED' if finding.damage else 'note':<8} {finding.key}: {finding.message}")
        verdict = f"damaged in {damaged} places" if damaged else "no damage"
        typer.echo(f"{catalog.model}: {objects} objects read, {verdict}")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def gc(
    registry: Registry = DEFAULT_ADDRESS, model: Model = None, days: Days = 90, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Remove schedules that nothing of the last days names: no alias, experiment, candidate or history. Their artifacts go too.

    Version records stay, so no number is used again. What a rollback would lead to stays too.
    """
    catalog = open_catalog(registry, model)
    collector = GarbageCollector(catalog, days)
    garbage = collector.find()
    if not dry_run:
        garbage = collector.remove(garbage)
    if as_json:
        print_json({"model": catalog.model, "dry_run": dry_run, "removed": [asdict(schedule) for schedule in garbage]})
        return
    if garbage:
        lines = [(one.digest[:8], ", ".join(map(str, one.versions)) or "-", len(one.beside)) for one in garbage]
        print_table(f"{catalog.model}: {'would be removed' if dry_run else 'removed'}", ("digest", "versions", "files"), lines)
    typer.echo(f"schedules that {'would be' if dry_run else 'were'} removed: {len(garbage)}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The bundle to make: a tar file; compressed if its name ends in gz.")],
    refs: Annotated[
        list[str] | None, typer.Argument(help="Tiers, version numbers, digests; everything if none is given.")
    ] = None,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Put schedules with their versions, tiers, artifacts and signatures into one file, for another registry."""
    bundle = Bundle.of(open_catalog(registry, model), refs or ())
    bundle.write(file)
    tiers = [alias.tier for alias in bundle.aliases]
    if as_json:
        print_json({"model": bundle.model, "file": str(file), "schedules": sorted(bundle.schedules), "tiers": tiers})
        return
    typer.echo(f"{file}: {len(bundle.schedules)} schedules of {bundle.model}, tiers: {', '.join(tiers) or 'none'}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A bundle made by export.")],
    registry: Registry = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Publish what a bundle holds and this registry lacks; promote tiers that it lacks. Everything is checked first.

    Nothing that is there is changed; to import again does nothing.
    """
    bundle = Bundle.read(file)
    items = list(bundle.publish(Catalog(open_store(registry), bundle.model, approved_tiers=approved_tiers())))
    if as_json:
        print_json({"model": bundle.model, "done": [item._asdict() for item in items]})
        return
    for item in items:
        typer.echo(f"{item.kind} {item.name[:8] if item.kind == 'schedule' else item.name}: {item.outcome}")
