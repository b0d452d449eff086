"""The options and arguments that the registry's commands share, and the catalog that they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry.catalog import Catalog
from registry.document import is_name
from registry.errors import InvalidInput, NotFound
from registry.stores.address import open_store

if TYPE_CHECKING:
    from registry.signing import TrustedKeys

Registry = Annotated[str, typer.Option("--registry", envvar="FLEXI_REGISTRY", help="A folder or s3://bucket/prefix.")]
Model = Annotated[str | None, typer.Option("--model", help="The model; needed where the registry has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why: it is kept in the history.")]
Ref = Annotated[str, typer.Argument(help="A tier, a version number, or a digest's first 8 digits or more.")]
Tier = Annotated[str, typer.Argument(help="The name of a tier.")]
Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, help="Schedule documents.")]
Key = Annotated[Path, typer.Option("--key", help="A private key (Ed25519, PEM): see keygen.")]
Note = Annotated[str, typer.Option("--note", "-m", help="What these schedules are: it stays with their versions.")]
Last = Annotated[int, typer.Option("--last", min=1, help="Show this many, the newest.")]


def open_catalog(registry: str, model: str | None, trusted: TrustedKeys | None = None) -> Catalog:
    """The catalog of the model that was named, or of the only one there is. Raises `NotFound` and `InvalidInput`."""
    store = open_store(registry)
    models = [model] if model else list(filter(is_name, store.folders("")))  # others are the server's: files, jobs, claims
    if not models:
        raise NotFound(f"no model in {registry} yet: publish a schedule first", param="registry")
    if len(models) > 1:
        raise InvalidInput(f"{registry} has several models, choose by --model: {', '.join(models)}", param="model")
    return Catalog(store, models[0], trusted=trusted, approved_tiers=approved_tiers())


def approved_tiers() -> list[str]:
    """Those that take a second person whatever the registry says: as servers read them, of FLEXI_APPROVED_TIERS."""
    return [tier.strip() for tier in os.environ.get("FLEXI_APPROVED_TIERS", "").split(",") if tier.strip()]
