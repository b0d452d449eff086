"""Which models a registry has, and for which weights: schedules are found by fingerprint, whatever the model is called."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from registry.catalog import Catalog
from registry.document import is_name
from registry.errors import FlexiError, StoreUnavailable, Untrusted
from registry.signing import TrustedKeys
from registry.stores.base import ObjectStore

log = logging.getLogger(__name__)

READERS = 16  # models that are looked at together: most of a look is waiting for the store


@dataclass(frozen=True)
class PublishedTier:
    """What a tier of a model means now: for which weights, whether its signature would be trusted, and when it was moved."""

    fingerprint: str
    trusted: bool
    moved: datetime


@dataclass(frozen=True)
class PublishedModel:
    """A model of the registry, with those of its tiers that can be read."""

    name: str
    tiers: Mapping[str, PublishedTier]

    def serves(self, fingerprint: str) -> bool:
        """Whether a tier means a schedule for these weights now."""
        return any(tier.fingerprint == fingerprint for tier in self.tiers.values())

    def standing(self, fingerprint: str) -> tuple[bool, datetime]:
        """Of two models for the same weights, the greater one is more likely meant: its tiers are trusted, and moved later."""
        return max((tier.trusted, tier.moved) for tier in self.tiers.values() if tier.fingerprint == fingerprint)


def published_model(store: ObjectStore, name: str, trusted: TrustedKeys | None = None) -> PublishedModel:
    """What the tiers of one model mean. A list, and two reads for each tier.

    A tier that is damaged, or that this version cannot read, is left out: it is no reason not to find the others. Raises
    `StoreUnavailable`.
    """
    catalog = Catalog(store, name, trusted=trusted)
    return PublishedModel(name, dict(_tiers(catalog, Catalog(store, name))))


def published_models(store: ObjectStore, trusted: TrustedKeys | None = None) -> list[PublishedModel]:
    """Every model of the registry, sorted by name. Raises `StoreUnavailable`."""
    names = [name for name in store.folders("") if is_name(name)]
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: published_model(store, name, trusted), names))


def models_of(models: Collection[PublishedModel], fingerprint: str) -> list[str]:
    """The names under which these weights have tiers, the one that is meant most likely first."""
    found = [model for model in models if model.serves(fingerprint)]
    return [model.name for model in sorted(found, key=lambda model: model.standing(fingerprint), reverse=True)]


def _tiers(catalog: Catalog, unguarded: Catalog) -> Iterator[tuple[str, PublishedTier]]:
    for tier in catalog.tiers():
        try:
            alias = catalog.alias(tier)
            try:
                schedule, trusted = catalog.schedule(alias.digest), True
            except Untrusted:
                schedule, trusted = unguarded.schedule(alias.digest), False
        except StoreUnavailable:
            raise
        except FlexiError as error:
            log.debug("tier %s of %s cannot be read: %s", tier, catalog.model, error)
            continue
        yield tier, PublishedTier(schedule.model.fingerprint, trusted, alias.history[-1].time)
