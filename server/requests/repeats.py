"""Finished images that are kept for a while: who asks for one again gets it as it was, and nothing is computed.

An image depends on its model, schedule, prompts, seed, size, guidance and inputs alone, to one of 255 levels, so one that was
made before is as good as one that would be made now. What is kept are levels and not files: these are made anew, in another
format too, with a mark of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from cachetools import TTLCache

from server.batching.image_task import ImageResult, ImageSpec
from server.requests.plan import Plan
from server.requests.warnings import no_previews_of_repeats
from server.telemetry import metrics

OF_THE_PIXELS = (
    "prompt",
    "negative",
    "guidance",
    "seed",
    "size",
    "edit",
    "keeps",
    "embedded",
    "chunks",
    "syntax",
    "adapters",
    "program",
)
"""Fields of an `ImageSpec` by which images are told apart; a program by its schedule's digest."""
OF_THE_WORK = (
    "tier",
    "arm",
    "deadline",
    "key",
    "key_seconds",
    "previews",
    "teacher_macs",
    "request_id",
    "background",
    "idle",
)
"""The other fields: for whom and when an image is made, which its pixels do not show."""
OVERHEAD = 1024  # bytes of memory, about, that an image takes beside its levels
PAUSE = 60.0  # seconds between two looks for what has had its time


class Repeats:
    """The images of all models of a server process, the least recently used dropped first. For the event loop."""

    def __init__(self, most: int, seconds: float, *, across_keys: bool = False, clock: Callable[[], float] = monotonic) -> None:
        """most: bytes in memory. seconds: after which an image is forgotten, however often it was asked for.

        across_keys: whether one API key may get what was made for another one.
        """
        self._images = TTLCache[bytes, ImageResult](most, seconds, clock, lambda image: image.pixels.nbytes + OVERHEAD)
        self._across_keys = across_keys

    def applied(self, plan: Plan) -> Plan:
        """The plan with those of its images that were made before: they cost nothing, and take no time."""
        found = dict[int, ImageResult]()
        for image, spec in enumerate(plan.specs):
            kept = self._images.get(self._key(plan, spec))
            metrics.repeats_total.labels("miss" if kept is None else "hit").inc()
            if kept is not None:
                found[image] = kept
        self._export()
        if not found:
            return plan
        macs = plan.macs * (len(plan.specs) - len(found)) // len(plan.specs)
        unmet = [no_previews_of_repeats(len(found))] if plan.specs[0].previews else []
        predicted = plan.predicted if macs else 0.0
        return replace(plan, repeats=found, macs=macs, predicted=predicted, warnings=(*plan.warnings, *unmet))

    def keep(self, plan: Plan, image: int, result: ImageResult) -> None:
        """An image of a plan, by its place there, that was made just now; the first of its kind stays.

        One that did not run what its schedule says is not kept: it is no other's.
        """
        key, planned = self._key(plan, plan.specs[image]), plan.macs // len(plan.to_make)
        size = result.pixels.nbytes + OVERHEAD
        if result.macs == planned and key not in self._images and size <= self._images.maxsize:
            self._images[key] = result
        self._export()

    async def follow(self) -> None:
        """Give up the memory of what has had its time, for ever."""
        while True:
            await asyncio.sleep(PAUSE)
            self._export()

    def _key(self, plan: Plan, spec: ImageSpec) -> bytes:
        """A digest, so that no prompt is kept."""
        parts = {name: getattr(spec, name) for name in OF_THE_PIXELS}
        parts["program"] = plan.entry.schedule.model.fingerprint, plan.entry.digest
        parts["adapters"] = spec.adapters.key
        parts["edit"] = spec.edit and (spec.edit.key, spec.edit.strength)
        return hashlib.sha256(repr((parts, None if self._across_keys else spec.key)).encode()).digest()

    def _export(self) -> None:
        self._images.expire()
        metrics.repeat_bytes.set(self._images.currsize)
