"""The first waves of a model, before anybody waits for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from engine.denoising_task import DenoisingTask
from engine.images import finite
from engine.model import Model
from engine.policy import FCFS
from engine.waves import Waves
from registry.schedule import Schedule, Segment

log = logging.getLogger(__name__)


def warm_up(model: Model, schedules: Iterable[Schedule], max_wave_rows: int) -> float:
    """Run a short image through every kind of wave that these schedules need, with and without guidance; twice.

    Returns the seconds per MAC of the second time: a first idea of the pace, for admission.
    """
    branches = {segment.branch for schedule in schedules for segment in schedule.segments if segment.partial} or {1}
    segments = tuple(Segment(partial=(1,), branch=branch) for branch in sorted(branches))
    program = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 2 * len(segments)), segments=segments))
    condition, negative = model.encode([model.prompts.sample]), model.negative([""]) if model.prompts.guides else None
    waves = Waves[DenoisingTask](model.network, model.slots(4), FCFS(max_wave_rows))
    pictures = True
    for _ in range(2):
        tasks = [DenoisingTask(program)]
        waves.add(tasks[0], model.noise(0), condition)
        if negative is not None:
            tasks.append(DenoisingTask(program, guidance=2.0))
            waves.add(tasks[1], model.noise(1), condition, negative)
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
    return seconds / sum(model.macs.of_program(program, task.unet_rows) for task in tasks)
