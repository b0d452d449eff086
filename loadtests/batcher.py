"""The request-level peer: BentoML's own adaptive batching in front of one model, with its best honest settings.

A batch is as large as our waves may be, never sheds load (`max_latency_ms` is ten minutes), and is answered when all of it
is done, for that is what `batchable=True` means. What to do with a batch of several tiers is its author's choice:

* grouped: one after the other the schedules in the batch, as a pipeline call has one number of steps;
* together: rows of all schedules in one UNet call, each leaving when it is done, until the longest is through. No pipeline of
  diffusers can do that: it borrows our waves, for one batch at a time.

Both run our engine, which is leaner than a diffusers pipeline. Started by `loadtests.contenders`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import bentoml
import torch
from torch import Tensor

from engine.denoising_task import DenoisingTask
from engine.guidance import OFF
from loadtests.competitor import BATCHING, MIX, ImageRequest, answer, batched_waves, loaded
from loadtests.mixes import mixes
from server import config

SETTINGS = config.load()
MAX_IMAGES = SETTINGS.max_wave_rows // 2  # with guidance


@bentoml.service(workers=1, traffic={"timeout": 600})
class Batcher:
    """Whole requests in batches."""

    def __init__(self) -> None:
        self._model = loaded(SETTINGS)
        schedules = mixes(self._model)[os.environ.get(MIX, "fewer")].schedules
        self._programs = {tier: self._model.compile(schedule) for tier, schedule in schedules.items()}
        self._waves = batched_waves(self._model, SETTINGS, schedules.values())

    @bentoml.api(batchable=True, max_batch_size=MAX_IMAGES, max_latency_ms=600_000)
    def generate(self, requests: list[ImageRequest]) -> list[dict[str, Any]]:
        """One image for each request, all at once."""
        batches = [requests]
        if os.environ.get(BATCHING) != "together":
            batches = [[request for request in requests if request.tier == tier] for tier in self._programs]
        latents = dict[int, Tensor]()
        for batch in batches:
            latents.update(zip(map(id, batch), self._denoised(batch), strict=True))
        images = self._model.decode(torch.stack([latents[id(request)] for request in requests]))
        return [answer(image, request) for image, request in zip(images, requests, strict=True)]

    def _denoised(self, requests: Sequence[ImageRequest]) -> list[Tensor]:
        """Latents (c, h, w), after as many waves as the longest request has steps."""
        if not requests:
            return []
        model = self._model
        conditions, negative = model.encode([request.prompt for request in requests]), None
        tasks = list[DenoisingTask]()
        for i, request in enumerate(requests):
            guidance = request.guidance_scale if request.guidance_scale > OFF else None
            if guidance and negative is None:
                negative = model.negative([""])
            task = DenoisingTask(self._programs[request.tier], guidance)
            self._waves.add(task, model.noise(request.seed), conditions[i : i + 1], negative if guidance else None)
            tasks.append(task)
        while self._waves.launch():  # each behind the one before it: the decoding waits for all
            pass
        return [task.latent for task in tasks if task.latent is not None]
