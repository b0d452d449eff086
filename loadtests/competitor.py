"""What all competing servers and their judge share: the model as the service's settings name it, and one form of request."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from engine import compiling
from engine.buckets import EXACT, dense
from engine.denoising_task import DenoisingTask
from engine.graphs import graphs_for
from engine.images import levels
from engine.loading import load
from engine.model import Model
from engine.policy import FCFS
from engine.waves import Waves
from loadtests.simulated import SimulatedGraphs, simulated
from registry.schedule import Schedule
from server import config
from server.requests.image_file import ImageFormat

MIX, BATCHING, SIMULATED = (f"LOADTEST_{name}" for name in ("MIX", "BATCHING", "SIMULATED"))


class ImageRequest(BaseModel):
    """One image."""

    prompt: str
    tier: str
    seed: int
    guidance_scale: float


def is_simulated() -> bool:
    """Whether this process simulates the card."""
    return bool(os.environ.get(SIMULATED))


def loaded(settings: config.Settings) -> Model:
    """The model as our service loads it with these settings, compiled where that is."""
    if settings.compiled:
        compiling.cache_in(settings.compile_cache)
    model = load(settings.model, settings.device, settings.dtype, settings.model_name, compiled=settings.compiled)
    if settings.compiled:
        compiling.warm(model, settings.max_wave_rows)
    return simulated(model) if is_simulated() else model


def answer(image: Tensor, request: ImageRequest) -> dict[str, Any]:
    """What our service says of an image (3, height, width) in [0, 1], as far as competitors do."""
    return {"images": [ImageFormat().in_base64(levels(image).numpy(), {"prompt": request.prompt, "seed": str(request.seed)})]}


def batched_waves(model: Model, settings: config.Settings, schedules: Iterable[Schedule]) -> Waves[DenoisingTask]:
    """Waves of these schedules, as fast as our service's, in which one batch of tasks after the other can run to its end."""
    graphs, buckets = None, EXACT
    if settings.cuda_graphs and (graphs := SimulatedGraphs() if is_simulated() else graphs_for(model.device)):
        buckets = dense(settings.max_wave_rows)
    slots = model.slots(settings.max_wave_rows)
    waves = Waves[DenoisingTask](model.network, slots, FCFS(settings.max_wave_rows), buckets, graphs)
    for _ in waves.prepare({branch for schedule in schedules for branch in schedule.branches}):
        pass
    return waves
