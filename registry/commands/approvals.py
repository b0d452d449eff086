"""The commands of a second person: the policy, open requests, approvals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry import second_person
from registry.approvals.approvals import POLICY, PolicyWithVoices
from registry.approvals.records import PromotionRequest
from registry.catalog import Catalog
from registry.commands.display import minute, print_alias, print_json, print_table
from registry.commands.options import AsJson, Model, Reason, Registry, open_catalog
from registry.document import NAME_RULE, is_name
from registry.errors import InvalidInput
from registry.stores.address import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from registry.signing import SigningKey

app = typer.Typer()

HOURS = 72.0  # that a request is good for, if nothing is said
Signer = Annotated[
    Path | None, typer.Option("--key", help="Speak by this private key (Ed25519, PEM), not by name: see keygen.")
]


@app.command()
def policy(
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    tiers: Annotated[
        list[str] | None, typer.Option("--tier", help="The tiers to guard from now on, all of them: give it several times.")
    ] = None,
    nothing: Annotated[bool, typer.Option("--none", help="Guard no tier any more.")] = False,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.01, max=8760, help="How long a request is good for [default: 72].")
    ] = None,
    key: Signer = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Which tiers take a second person to promote; with --tier or --none, change that. All that was ever said is kept.

    The first policy takes one person. Who changes one that guards a tier takes a second, who runs `approve policy`.
    """
    catalog = open_catalog(registry, model)
    if tiers or nothing:
        if tiers and nothing:
            raise InvalidInput("name tiers or say --none", param="tier")
        for tier in tiers or ():
            if not is_name(tier):
                raise InvalidInput(f"{tier!r} cannot name a tier: give {NAME_RULE}", param="tier")
            if tier not in catalog.tiers():
                typer.echo(f"note: there is no tier {tier} yet; it takes a second person once there is", err=True)
        known = {
            tier: tuple({move.digest: None for move in catalog.history(tier)})
            for tier in tiers or ()
            if tier in catalog.tiers()
        }
        catalog.approvals.set_policy(tiers or (), known, hours or HOURS, reason, signing_key(key))
    elif hours or key or reason:
        raise InvalidInput("--hours, --key and --reason go with --tier or --none", param="tier")
    found = list(catalog.approvals.policies())
    if as_json:
        print_json([one.policy.model_dump(mode="json") | {"in_force": _place(found, one)} for one in found])
        return
    lines = [
        (str(one.policy.number), ", ".join(one.policy.tiers) or "none", "keys" if one.policy.signed else "names",
         f"{one.policy.hours:g} h", _place(found, one), minute(one.policy.time),
         ", ".join(voice.author for voice in one.voices), one.policy.reason)
        for one in found
    ]  # fmt: skip
    print_table(
        f"{catalog.model}: tiers that take a second person",
        ("number", "tiers", "voices", "requests", "", "time (UTC)", "by", "reason"),
        lines,
    )


@app.command()
def requests(registry: Registry = DEFAULT_ADDRESS, model: Model = None, as_json: AsJson = False) -> None:
    """Promotions that wait for a second person."""
    catalog = open_catalog(registry, model)
    found = second_person.open_requests(catalog)
    if as_json:
        print_json([_document(one.request) | {"by": [voice.who for voice in one.voices]} for one in found])
        return
    lines = [
        (one.request.id, one.request.tier, str(one.request.target.version), one.request.target.digest[:8],
         minute(one.request.until), one.request.author, str(len(one.voices)), one.request.reason)
        for one in found
    ]  # fmt: skip
    print_table(
        f"{catalog.model}: requests",
        ("request", "tier", "version", "digest", "until (UTC)", "author", "voices", "reason"),
        lines,
    )


@app.command()
def approve(
    request: Annotated[str, typer.Argument(help="A request's id, or `policy` for a change of the policy.")],
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    key: Signer = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Be the second person: the tier is moved, or the policy in force. Who asked for it cannot."""
    catalog = open_catalog(registry, model)
    if request == POLICY:
        done = catalog.approvals.approve_policy(reason, signing_key(key))
        typer.echo(f"policy {done.policy.number} is {'in force' if done.in_force else 'waiting for another person'}")
        return
    alias = second_person.approve(catalog, request, reason, signing_key(key))
    if alias is None:
        typer.echo(f"request {request} has one voice now, and takes another")
        return
    print_alias(alias, as_json)


def request_promotion(catalog: Catalog, tier: str, ref: str, reason: str, key: Path | None, as_json: bool) -> None:
    """Make a request in place of a promotion, and say who is to do what."""
    made = second_person.request(catalog, tier, ref, reason, key=signing_key(key))
    if as_json:
        print_json({"request": _document(made)})
        return
    command = f"python -m registry approve {made.id}"
    typer.echo(f"tier {tier} takes a second person: request {made.id}, good until {minute(made.until)} UTC; {command}")


def signing_key(path: Path | None) -> SigningKey | None:
    """The key in a file, if there is one."""
    if path is None:
        return None
    from registry.signing import SigningKey  # cryptography takes a moment to import: only who signs pays

    return SigningKey.read(path)


def _document(request: PromotionRequest) -> dict[str, object]:
    return {"id": request.id, **request.model_dump(mode="json")}


def _place(found: list[PolicyWithVoices], one: PolicyWithVoices) -> str:
    newest = [policy for policy in found if policy.in_force][-1:]
    return "in force" if one in newest else "replaced" if one.in_force else "waits for a second person"
