"""The command that makes a page of a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.catalog import Catalog
from registry.commands.maintenance import Trusted
from registry.commands.options import Model, Registry
from registry.document import is_name
from registry.stores.address import DEFAULT_ADDRESS, open_store
from registry.writer import now

app = typer.Typer()

Out = Annotated[Path, typer.Argument(help="The folder: a new or empty one, or an older site, which is replaced.")]
Runs = Annotated[
    list[Path] | None,
    typer.Option("--run", help="The folder of a finished search, whose report is copied; several are possible."),
]
Last = Annotated[int, typer.Option("--last", min=1, max=500, help="Show so many versions, the newest.")]


@app.command()
def site(
    out: Out,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    run: Runs = None,
    last: Last = 100,
    trusted: Trusted = None,
) -> None:
    """Make a page of the registry: fronts, tiers with their history, experiments, search reports. It needs no server."""
    from registry.signing import TrustedKeys  # cryptography and templates take a moment to import: only who makes pages pays
    from registry.site.export import Site, refuse_other_folder

    refuse_other_folder(out)  # before much is read
    keys, store = TrustedKeys.read(trusted) if trusted else None, open_store(registry)
    made = Site(registry, now())
    for folder in run or ():
        made.add_run(folder)
    for name in [model] if model else filter(is_name, store.folders("")):
        made.add_model(Catalog(store, name), last, keys)
    typer.echo(made.write(out))
