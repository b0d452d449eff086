"""What the registry calls the model that is loaded: tiers are found by its fingerprint, whatever its folder is called."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from engine.model import Model
from registry.errors import FlexiError, InvalidInput, Unsupported
from registry.models import PublishedModel, models_of, published_model, published_models
from registry.signing import TrustedKeys
from registry.stores.base import ObjectStore
from server.telemetry import metrics
from server.telemetry.faults import Faults
from server.tiers.last_good import LastGood, kept_models

log = logging.getLogger(__name__)

PAUSE = 60.0  # seconds between two looks at every model of a registry: a list and some reads for each
SETTING = "FLEXI_MODEL_NAME"
REGISTRY = "the registry"  # what may be at fault


class ModelNames:
    """Looks for the names under which a registry has tiers of these weights. All of it blocks."""

    def __init__(
        self,
        model: Model,
        open_store: Callable[[], ObjectStore],
        kept_in: tuple[Path, str],
        trusted: TrustedKeys | None = None,
    ) -> None:
        """`open_store` gives the same store each time, or raises while it is away; `kept_in`: the folder of last good sets and
        the registry's address.
        """
        self._model, self._open_store, self._kept_in, self._trusted = model, open_store, kept_in, trusted
        self._name = model.ref.name  # what it is called here
        self._faults = Faults(log)
        self._looked: float | None = None  # at all models, monotonic
        self._names: list[str] = []  # found then
        self.fault: str | None = None  # why no name was found the last time

    def find(self) -> str | None:
        """What to call the model: its own name where that has tiers of it, else the name that has.

        Of several names it is the one of the newest last good set kept here, else the one whose tiers were moved last. Without
        any, its own. While the store is away, the name of a last good set; None where there is none, so that one asks again.

        Raises `Unsupported` or `InvalidInput` when the registry cannot be opened for a reason that will not pass.
        """
        try:
            store = self._open_store()
            names = self._named([published_model(store, self._name, self._trusted)]) or self._all_named(store)
        except Exception as error:  # whatever a store does, a start goes on
            if isinstance(error, Unsupported | InvalidInput):
                raise
            if (name := self._kept()) is None:
                metrics.registry_errors_total.inc()
                reason = error.text if isinstance(error, FlexiError) else error
                self.fault = f"the registry could not be read: {reason}"
                self._faults.failed(REGISTRY, self.fault)
            return name
        self._faults.mended(REGISTRY)
        self._name = self._chosen(names) if names else self._name
        return self._name

    def elsewhere(self) -> list[str]:
        """Other names under which the registry has tiers of these weights. Looks at most once in `PAUSE`, raises nothing."""
        if self._looked is None or time.monotonic() - self._looked >= PAUSE:
            try:
                self._all_named(self._open_store())
            except Exception as error:  # whoever follows the tiers says it
                log.debug("other names could not be looked for: %s", error)
        return [name for name in self._names if name != self._name]

    def _all_named(self, store: ObjectStore) -> list[str]:
        self._looked = time.monotonic()
        self._names = self._named(published_models(store, self._trusted))
        return self._names

    def _named(self, models: Collection[PublishedModel]) -> list[str]:
        """Those of these weights; all files are hashed only if there are tiers, and none for those that are read."""
        if not any(model.tiers for model in models):
            return []
        return models_of(models, self._model.ref.fingerprint) or models_of(models, self._model.earlier)

    def _chosen(self, names: list[str]) -> str:
        if names == [self._name]:
            return self._name
        kept = kept_models(*self._kept_in, self._model.is_called)
        chosen = next((name for name in kept if name in names), names[0])
        if len(names) > 1:
            message = "the registry has tiers of this model under %s: serving those of %s, %s chooses"
            log.warning(message, ", ".join(sorted(names)), chosen, SETTING)
        else:
            log.info("the registry calls this model %s, its folder %s", chosen, self._name)
        return chosen

    def _kept(self) -> str | None:
        """The name of a last good set of these weights; its own, even where that set is of others."""
        names = kept_models(*self._kept_in, self._model.is_called)
        if self._name in names or (not names and LastGood(*self._kept_in, self._name).path.is_file()):
            return self._name
        return names[0] if names else None
