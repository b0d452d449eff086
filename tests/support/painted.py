"""Requests without an engine: images are painted at once, each in the colour of its seed. All else of a request is real."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from concurrent.futures import Future

import torch

from server.access.keys import ANONYMOUS
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.image_task import ImageResult, macs_before
from server.experiments.active import ActiveExperiments
from server.requests.context import RequestContext
from server.requests.generation import Generation
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules


class PlannerSettings:
    """What a planner reads of the settings."""

    request_seconds, default_tier, default_guidance = 60.0, "reference", 3.0


class Painter:
    """A renderer. `specs` are those that were painted; the images numbered in `fails`, in that order, fail with the error.

    An image takes what its spec says, less `short` MACs.
    """

    def __init__(self, model):
        self.specs, self.fails, self.short = [], {}, 0
        self._model = model

    def submit(self, specs, preview=None, progress=None):
        futures = []
        for spec in specs:
            future = Future()
            if spec.previews:
                preview(spec, 0, self.painted(spec))
            if error := self.fails.get(len(self.specs)):
                future.set_exception(error)
            else:
                macs = macs_before(spec, self._model.macs_at(spec.size, spec.chunks))[-1] - self.short
                future.set_result(ImageResult(self.painted(spec), macs, Counter(spec.program.counts), 0.25, 0.5))
            self.specs.append(spec)
            futures.append(future)
        return futures

    @staticmethod
    def painted(spec):
        size = (spec.size.height, spec.size.width) if spec.size else (8, 8)
        return torch.full((*size, 3), spec.seed % 251, dtype=torch.uint8) + torch.arange(3, dtype=torch.uint8)


def generation_of(model, renderer, *, quotas=None, observers=(), open_catalog=lambda: None, others=(), **options):
    """Of a real planner; without a catalog, the teacher is all that it has."""
    schedules = ActiveSchedules(open_catalog, model, 4, others)
    experiments = ActiveExperiments(lambda: None, schedules)
    planner = Planner(schedules, experiments, model, lambda *_: 0.25, PlannerSettings(), others)
    return Generation(planner, renderer, quotas or Quotas(), observers, **options)


async def _never():
    await asyncio.Event().wait()


def answered(generation, *, key=ANONYMOUS, context=None, **fields):
    """A request's answer."""
    request = GenerateRequest(**{"prompt": "x", "seed": 7} | fields)
    context = context or RequestContext("id-1", key)
    return asyncio.run(asyncio.wait_for(generation.answer(request, context, _never()), 30))


def streamed(generation, *, key=ANONYMOUS, context=None, previews=0, progress=False, **fields):
    """What a request's stream gives, and at its end the error that it ends with, if it does."""

    async def go():
        given = []
        request = GenerateRequest(**{"prompt": "x", "seed": 7} | fields)
        try:
            stream = generation.stream(request, context or RequestContext("id-1", key), previews, progress)
            async for made in stream:
                given += [made]  # an error keeps what came before it
        except Exception as error:
            given.append(error)
        return given

    return asyncio.run(asyncio.wait_for(go(), 30))


def file_of(b64):
    return base64.b64decode(b64)
