"""Our service, unchanged, with its model on the simulated device: `bentoml serve loadtests.simulated_service:Flexiffusion`."""

from __future__ import annotations

from typing import Any

from engine.loading import load
from engine.model import Model
from loadtests.simulated import simulated
from server import app


def _load(*arguments: Any, **options: Any) -> Model:
    return simulated(load(*arguments, **options))


app.load = _load  # type: ignore[attr-defined]  # before the service is imported

from server.service import Flexiffusion  # noqa: E402

__all__ = ["Flexiffusion"]
