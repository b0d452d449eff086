"""Kinds of metrics that are of one model each, of the several that a server may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from typing_extensions import override

from server.telemetry import served

MODEL = "model"


class _OfModel(MetricWrapperBase):
    """Its first label is the model for which the caller is at work (`telemetry.served`): nobody passes it."""

    def __init__(self, name: str, documentation: str, labelnames: Iterable[str] = (), **options: Any) -> None:
        others = [label for label in labelnames if label != MODEL]
        super().__init__(name, documentation, (MODEL, *others), **options)

    @override
    def labels(self, *values: object, **_: object) -> Self:
        return super().labels(served.model(), *values)

    @override
    def _raise_if_not_observable(self) -> None:
        """One without further labels is used as if it had none."""

    def __getattr__(self, name: str) -> Any:
        if name == "_value" and len(self._labelnames) == 1:
            return self.labels()._value
        raise AttributeError(name)


class ModelCounter(_OfModel, Counter):
    """A counter of each model."""


class ModelGauge(_OfModel, Gauge):
    """A gauge of each model."""


class ModelHistogram(_OfModel, Histogram):
    """A histogram of each model."""
