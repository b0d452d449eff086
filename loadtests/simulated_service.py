"""Our service, unchanged, with its model on a simulated card: `bentoml serve loadtests.simulated_service:Flexiffusion`.

FLEXI_CUDA_GRAPHS says whether waves are graphs there, as it does on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.graphs import Graphs
from engine.loading import load
from engine.model import Model
from loadtests.simulated import SimulatedGraphs, simulated
from server.models import loading, opener


def _load(*arguments: Any, **options: Any) -> Model:
    return simulated(load(*arguments, **options))


def _graphs_for(device: torch.device) -> Graphs | None:
    return SimulatedGraphs()


loading.load = opener.load = _load  # type: ignore[attr-defined]  # before the service is imported
opener.graphs_for = _graphs_for  # type: ignore[attr-defined]

from server.service import Flexiffusion  # noqa: E402

__all__ = ["Flexiffusion"]
