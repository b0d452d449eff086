"""A real device's curves: waves of a few sizes, and the VAE, measured alone before any server starts."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from time import monotonic

import torch

from engine.denoising_task import DenoisingTask
from engine.model import Model
from loadtests.card import FULL, CallCost, Card, numbered
from loadtests.competitor import batched_waves
from registry.schedule import Schedule
from server.config import Settings

REPEATS = 3  # of each size, after one that is not counted
GUIDANCE = 2.0  # any scale: what counts is that there are two rows


def measured(model: Model, schedule: Schedule, settings: Settings) -> Card:
    """How long guided waves take by the kind of step, of the kinds in this schedule, and decoding: medians, in this process.

    Sizes double up to the largest wave of these settings.
    """
    program = model.compile(schedule)
    waves = batched_waves(model, settings, [schedule])
    condition, negative = model.encode([model.prompts.sample]), model.negative([""])
    calls, decoding = defaultdict[int, dict[int, float]](dict), dict[int, float]()
    for images in _sizes(settings.max_wave_rows // 2):
        steps, decodes = defaultdict[int, list[float]](list), list[float]()
        for repeat in range(1 + REPEATS):
            tasks = [DenoisingTask(program, GUIDANCE) for _ in range(images)]
            for seed, task in enumerate(tasks):
                waves.add(task, model.noise(seed), condition, negative)
            while wave := waves.tick():
                if repeat:
                    steps[numbered(wave.need.branch)].append(1000 * wave.seconds)
            latents = torch.stack([task.latent for task in tasks if task.latent is not None])
            model.network.fence().wait()
            begun = monotonic()
            model.decode(latents)
            if repeat:
                decodes.append(1000 * (monotonic() - begun))
        for branch, times in steps.items():
            calls[branch][2 * images] = median(times)
        decoding[images] = median(decodes)
    about = "; ".join(f"{_kind(branch)} {_shown(times)}" for branch, times in sorted(calls.items()))
    return Card(
        f"measured alone, ms by UNet rows: {about}; decoding by images {_shown(decoding)}",
        {branch: CallCost(times) for branch, times in calls.items()},
        CallCost(decoding),
    )


def _sizes(most: int) -> list[int]:
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


def _kind(branch: int) -> str:
    return "full" if branch == FULL else f"partial s={branch}"


def _shown(milliseconds: dict[int, float]) -> str:
    return ", ".join(f"{rows}: {time:.1f}" for rows, time in milliseconds.items())
