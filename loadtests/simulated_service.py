"""Our service, unchanged, with its model on the simulated device: `bentoml serve loadtests.simulated_service:Flexiffusion`."""

from __future__ import annotations

from typing import Any

from engine.models import Model, load
from loadtests.simulated import simulated
from server import house


def _load(*arguments: Any, **options: Any) -> Model:
    return simulated(load(*arguments, **options))


setattr(house, "load", _load)  # noqa: B010  # mypy knows that house does not give it away. Before the service is imported

from server.service import Flexiffusion  # noqa: E402

__all__ = ["Flexiffusion"]
