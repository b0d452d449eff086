"""The first waves of a model, before anybody waits for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator
from typing import Any

from engine.denoising_task import DenoisingTask
from engine.image_size import ImageSize
from engine.images import finite
from engine.model import Model
from engine.program import Program
from engine.waves import Waves
from registry.schedule import Branch, Schedule, Segment

log = logging.getLogger(__name__)


def warm_up(model: Model, waves: Waves[Any], branches: Collection[Branch]) -> tuple[int, float]:
    """`warming` from its beginning to its end."""
    pieces = warming(model, waves, branches)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            macs, seconds = end.value
            return macs, seconds


def warming(model: Model, waves: Waves[Any], branches: Collection[Branch]) -> Generator[None, None, tuple[int, float]]:
    """Run a short image of each size through every kind of wave that schedules of these branches need, with and without
    guidance; twice. Yields after each wave: other models' may run in between.

    Nothing else may be in flight. Returns the MACs and the seconds of the second times.
    """
    segments = tuple(Segment.reusing(branch, (1,)) for branch in sorted(branches)) or (Segment(),)
    solver = model.solver(model.levels.plain_solver, 2 * len(segments))
    program = model.compile(Schedule(model=model.ref, solver=solver, segments=segments))
    macs, seconds, pictures = 0, 0.0, True
    for size in waves.slots.sizes:
        for _ in range(2):
            tasks, last, start = _added(model, waves, program, size), 0.0, time.monotonic()
            while waves.tick():
                last += time.monotonic() - start
                yield
                start = time.monotonic()
            for task in tasks:
                if task.latent is None:
                    raise task.error or AssertionError("a task that left has a latent or an error")
                pictures = bool(finite(model.decode(task.latent[None]))) and pictures
            last += time.monotonic() - start
            yield
        seconds += last
        macs += sum(model.macs_at(size).of_program(program, task.unet_rows) for task in tasks)
    if not pictures:
        log.error("the pixels of the warm-up are not finite, decoded in float32 either: images are going to fail")
    return macs, seconds


def _added(model: Model, waves: Waves[Any], program: Program, size: ImageSize | None) -> list[DenoisingTask]:
    """A task with guidance, where the model has any, and where there is room one without."""
    condition, tasks = model.encode([model.prompts.sample], size=size), list[DenoisingTask]()
    if model.prompts.guides:
        tasks.append(DenoisingTask(program, guidance=2.0, size=size))
        waves.add(tasks[0], model.noise(1, size), condition, model.negative([""], size))
    if waves.slots.trial().take(1, size):
        tasks.append(DenoisingTask(program, size=size))
        waves.add(tasks[-1], model.noise(0, size), condition)
    return tasks
