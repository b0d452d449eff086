"""The service whose first wave fails as nobody expected: `bentoml serve tests.e2e.failing_start:Flexiffusion`."""

from __future__ import annotations

from typing import Any

from server.preconditions import supervises
from server.service import Flexiffusion

__all__ = ["Flexiffusion"]


def failing(*_: Any) -> float:
    """Instead of `warming`."""
    raise RuntimeError("nobody expected this,\nin two lines")


if not supervises:
    from server.batching import model_engine

    model_engine.warming = failing  # type: ignore[assignment]
