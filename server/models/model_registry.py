"""One model's part of the registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from registry.catalog import Catalog
from registry.experiments.candidates import CandidateCatalog
from registry.experiments.catalog import ExperimentCatalog
from registry.signing import TrustedKeys
from registry.site.reader import RegistryReader
from registry.stores.base import ObjectStore
from server.config import Settings
from server.tiers.last_good import LastGood


class ModelRegistry:
    """One model's part of the registry, once the store could be opened: it may be down when the server starts."""

    def __init__(
        self, settings: Settings, model: str, open_once: Callable[[], ObjectStore], trusted: TrustedKeys | None
    ) -> None:
        self.model = model
        self.last_good = LastGood(settings.state, settings.registry, model, trusted)
        self.trusted = trusted
        self.approved_tiers = settings.approved_tiers
        self._open = open_once

    @cached_property
    def catalog(self) -> Catalog:
        """Raises what is wrong with the store; an error is not kept."""
        return Catalog(self._open(), self.model, trusted=self.trusted, approved_tiers=self.approved_tiers)

    @cached_property
    def reader(self) -> RegistryReader:
        """What operators are shown of it. Raises what `catalog` raises."""
        return RegistryReader(Catalog(self._open(), self.model), self.trusted)

    @cached_property
    def experiments(self) -> ExperimentCatalog:
        """Raises what `catalog` raises."""
        return ExperimentCatalog(self.catalog.store, self.model)

    @cached_property
    def candidates(self) -> CandidateCatalog:
        """Raises what `catalog` raises."""
        return CandidateCatalog(self.catalog.store, self.model)
