"""The first waves of a model, before anybody waits for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from engine.denoising_task import DenoisingTask
from engine.images import finite
from engine.model import Model
from engine.waves import Waves
from registry.schedule import Schedule, Segment

log = logging.getLogger(__name__)


def warm_up(model: Model, waves: Waves[Any], branches: Collection[int]) -> tuple[int, float]:
    """Run a short image through every kind of wave that schedules of these branches need, with and without guidance; twice.

    Nothing else may be in flight. Returns the MACs and the seconds of the second time.
    """
    segments = tuple(Segment(partial=(1,), branch=branch) for branch in sorted(branches)) or (Segment(),)
    program = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 2 * len(segments)), segments=segments))
    condition, negative = model.encode([model.prompts.sample]), model.negative([""]) if model.prompts.guides else None
    pictures = True
    for _ in range(2):
        tasks = list[DenoisingTask]()
        if negative is not None:
            tasks.append(DenoisingTask(program, guidance=2.0))
            waves.add(tasks[0], model.noise(1), condition, negative)
        if waves.slots.free:
            tasks.append(DenoisingTask(program))
            waves.add(tasks[-1], model.noise(0), condition)
        start = time.monotonic()
        while waves.tick():
            pass
        for task in tasks:
            if task.latent is None:
                raise task.error or AssertionError("a task that left has a latent or an error")
            pictures = bool(finite(model.decode(task.latent[None]))) and pictures
        seconds = time.monotonic() - start
    if not pictures:
        log.error("the pixels of the warm-up are not finite, decoded in float32 either: images are going to fail")
    return sum(model.macs.of_program(program, task.unet_rows) for task in tasks), seconds
