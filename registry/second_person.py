"""Promotions that take a second person: asked for by one, made by the voice of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from registry.approvals.approvals import PERSONS, OpenRequest
from registry.approvals.records import PromotionRequest
from registry.catalog import Catalog
from registry.records import Alias, Text, checked
from registry.tiers import moved_meanwhile

if TYPE_CHECKING:
    from registry.signing import SigningKey

_TEXT: TypeAdapter[str] = TypeAdapter(Text)
MAX_REASON = 2000  # characters that a history takes


def request(
    catalog: Catalog, tier: str, ref: str | int, reason: str = "", *, moves: int | None = None, key: SigningKey | None = None
) -> PromotionRequest:
    """Ask that a tier mean this schedule. `moves` as for `Catalog.promote`; `key` signs the request, and speaks for it."""
    _, target = catalog.target(tier, ref)
    before = catalog.alias(tier) if tier in catalog.tiers() else None
    moved = before.moves if before else 0
    if moves is not None and moves != moved:
        raise moved_meanwhile(tier, before)
    return catalog.approvals.request(tier, target, moved, checked(_TEXT, reason, "reason"), key)


def approve(catalog: Catalog, request_id: str, reason: str = "", key: SigningKey | None = None) -> Alias | None:
    """Speak for a request, as another person than who made it; the alias, if that is enough and the tier is moved.

    Raises `NotFound`, `InvalidInput` for a stale one, and `Conflict` for who speaks for it already.
    """
    wanted = catalog.approvals.find(request_id)
    voices = catalog.approvals.approve(wanted, _moves(catalog, wanted.tier), checked(_TEXT, reason, "reason"), key)
    if len(voices) < PERSONS:
        return None
    said = f"request {wanted.id} by {wanted.author}: {wanted.reason}"[:MAX_REASON]
    return catalog.promote(wanted.tier, wanted.target.version, said, moves=wanted.moves)


def open_requests(catalog: Catalog) -> list[OpenRequest]:
    """What waits for a second person."""
    return catalog.approvals.open_requests(lambda tier: _moves(catalog, tier))


def _moves(catalog: Catalog, tier: str) -> int:
    return catalog.alias(tier).moves if tier in catalog.tiers() else 0
