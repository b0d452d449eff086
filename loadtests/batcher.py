"""The request-level peer: BentoML's own adaptive batching in front of one model, with its best honest settings.

A batch is as large as our waves may be, never sheds load (`max_latency_ms` is ten minutes), and is answered when all of it
is done, for that is what `batchable=True` means. What to do with a batch of several tiers is its author's choice:

* grouped: one sampler call for each schedule in the batch, as a pipeline call has one number of steps;
* together: rows of all schedules in one UNet call, each leaving when it is done, until the longest is through. No pipeline of
  diffusers can do that: it borrows our waves, for one batch at a time.

Both run our engine, which is leaner than a diffusers pipeline. Started by `loadtests.contenders`.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import torch
from pydantic import BaseModel
from torch import Tensor

from engine.denoising_task import DenoisingTask
from engine.images import levels
from engine.loading import load
from engine.policy import FCFS
from engine.sampler import generate
from engine.waves import Waves
from loadtests.mixes import MODEL, mixes
from loadtests.simulated import simulated
from server.requests.image_file import ImageFormat

MAX_ROWS = int(os.environ.get("LOADTEST_ROWS", "16"))
TOGETHER = os.environ.get("LOADTEST_BATCHING") == "together"
MIX = mixes()[os.environ.get("LOADTEST_MIX", "fewer")]


class BatchedRequest(BaseModel):
    """One image."""

    prompt: str
    tier: str
    seed: int


@bentoml.service(workers=1, traffic={"timeout": 600})
class Batcher:
    """Whole requests in batches."""

    def __init__(self) -> None:
        model = load(MODEL)
        self._model = simulated(model) if os.environ.get("LOADTEST_SIMULATED") else model
        self._programs = {tier: self._model.compile(schedule) for tier, schedule in MIX.schedules.items()}
        self._slots = self._model.slots(MAX_ROWS)

    @bentoml.api(batchable=True, max_batch_size=MAX_ROWS, max_latency_ms=600_000)
    def generate(self, requests: list[BatchedRequest]) -> list[dict[str, Any]]:
        """One image for each request, all at once."""
        latents = self._together(requests) if TOGETHER else self._grouped(requests)
        images, files = self._model.decode(latents), ImageFormat()
        return [
            {"images": [files.in_base64(image, {"prompt": request.prompt, "seed": str(request.seed)})]}
            for request, image in zip(requests, levels(images).numpy(), strict=True)
        ]

    def _grouped(self, requests: list[BatchedRequest]) -> Tensor:
        latents: dict[int, Tensor] = {}
        for tier, program in self._programs.items():
            members = [i for i, request in enumerate(requests) if request.tier == tier]
            if members:
                noise = torch.stack([self._model.noise(requests[i].seed) for i in members])
                condition = self._model.encode([requests[i].prompt for i in members])
                latents.update(zip(members, generate(self._model.network, program, noise, condition), strict=True))
        return torch.stack([latents[i] for i in range(len(requests))])

    def _together(self, requests: list[BatchedRequest]) -> Tensor:
        waves = Waves[DenoisingTask](self._model.network, self._slots, FCFS(MAX_ROWS))
        conditions = self._model.encode([request.prompt for request in requests])
        tasks = [DenoisingTask(self._programs[request.tier]) for request in requests]
        for i, (request, task) in enumerate(zip(requests, tasks, strict=True)):
            waves.add(task, self._model.noise(request.seed), conditions[i : i + 1])
        while waves.launch():  # each behind the one before it: the decoding waits for all
            pass
        return torch.stack([task.latent for task in tasks if task.latent is not None])
