"""The shadow teacher: a sampled share of finished images is made again by the teacher, from the same prompt and noise, while
the engine would idle. What lies between the two is the fidelity that clients really got."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from engine.device import exclusive
from evaluation import Features, frechet_distance, psnr
from registry.errors import FlexiError
from server.access.keys import Key
from server.access.quota import Quotas
from server.batching.image_task import ImageResult, ImageSpec
from server.loras.adapter_set import AdapterSet
from server.requests.context import OK, RequestContext
from server.requests.generation import Renderer, RequestObserver
from server.requests.plan import Plan
from server.requests.running import gather
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule

log = logging.getLogger(__name__)

LABEL = "shadow"  # the tier under which its work is counted
PENDING = 16  # images that wait for idle time; more are not sampled, so that memory is bounded
WINDOW = 512  # newest images of a tier and arm that the running rFID is of
FEWEST = 64  # and how many it takes at least
EVERY = 16  # images between two computations of it


@dataclass(frozen=True)
class TeacherComparison:
    """One image against the teacher's. psnr in dB; distance: Euclidean, between the images' features, where there are any.

    rfid: the running one of its tier and arm, where this image caused it to be computed anew.
    """

    psnr: float
    distance: float | None = None
    rfid: float | None = None


class ComparisonObserver(Protocol):
    """Something that wants to know how close images are to the teacher's."""

    def compared(self, plan: Plan, comparison: TeacherComparison) -> None:
        """Called for each image that was held against the teacher's, in the event loop."""


@dataclass
class FeatureWindow:
    """Features of a tier's images and of the teacher's, the newest; of one schedule only."""

    digest: str
    ours: deque[Features] = field(default_factory=lambda: deque(maxlen=WINDOW))
    teachers: deque[Features] = field(default_factory=lambda: deque(maxlen=WINDOW))
    seen: int = 0

    def add(self, ours: Features, teachers: Features) -> float | None:
        """The running rFID, each time it is computed anew."""
        self.ours.append(ours)
        self.teachers.append(teachers)
        self.seen += 1
        if len(self.ours) < FEWEST or self.seen % EVERY:
            return None
        return frechet_distance(np.stack(self.ours), np.stack(self.teachers))


class ShadowTeacher(RequestObserver):
    """Offered each finished request; works in the event loop, and compares beside it.

    No client waits for it: its images are idle work, and what it may spend in a minute is bounded in MACs.
    """

    def __init__(
        self,
        renderer: Renderer,
        teacher: Callable[[], ActiveSchedule],
        features: Callable[[Tensor], Features] | None,
        share: float,
        macs_per_minute: int | None,
        observers: Sequence[ComparisonObserver] = (),
        dice: Callable[[], float] = random.random,
        borrow: Callable[[AdapterSet, asyncio.Task[None]], None] = lambda *_: None,
    ) -> None:
        """features: (n, 3, h, w) in [0, 1] -> (n, d). `share` of the images is sampled, 0 for none.

        borrow: has a task cancelled when the LoRAs that it works with leave memory.
        """
        self._borrow = borrow
        self._renderer = renderer
        self._teacher = teacher
        self._features = features
        self._share = share
        self._key = Key(LABEL, macs_per_minute, None)
        self._quotas = Quotas()
        self._observers = observers
        self._dice = dice
        self._tasks: set[asyncio.Task[None]] = set()
        self._windows: dict[tuple[str, str], FeatureWindow] = {}  # by tier and arm
        self._measuring = asyncio.Lock()  # the extractor and the windows are one thread's at a time

    @override
    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """Maybe make some of its images again. The teacher's own are not held against themselves."""
        teacher = self._teacher()
        if context.code != OK or plan.entry.digest == teacher.digest:
            return
        for image, result in context.results.items():
            if self._dice() < self._share and len(self._tasks) < PENDING:
                spec = shadow_of(plan.specs[image], teacher)
                try:
                    self._quotas.take(self._key, spec.teacher_macs)
                except FlexiError:  # over its budget for now; the next one may be not
                    metrics.shadow_images_total.labels("over_budget").inc()
                    continue
                task = asyncio.create_task(self._compare(plan, result, spec))
                self._borrow(spec.adapters, task)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up the comparisons that wait."""
        for task in self._tasks:
            task.cancel()

    async def _compare(self, plan: Plan, result: ImageResult, spec: ImageSpec) -> None:
        try:
            (again,) = await gather(self._renderer.submit([spec]))
            async with self._measuring:
                comparison = await asyncio.to_thread(self._measure, plan, result.pixels, again.pixels)
        except asyncio.CancelledError:
            metrics.shadow_images_total.labels("given_up").inc()
            raise
        except FlexiError as error:
            log.warning("a shadow image failed: %s", error, extra={"fields": {"request_id": plan.request_id}})
            metrics.shadow_images_total.labels("failed").inc()
            return
        metrics.shadow_images_total.labels("ok").inc()
        for observer in self._observers:
            observer.compared(plan, comparison)

    def _measure(self, plan: Plan, ours: Tensor, teachers: Tensor) -> TeacherComparison:
        """Of two images' levels (height, width, 3)."""
        tier, arm = plan.entry.label, plan.arm_label
        images = torch.stack([ours, teachers]).movedim(-1, -3) / 255
        quality = psnr(float(((images[0] - images[1]).double() ** 2).mean()))
        metrics.fidelity_psnr.labels(tier, arm).observe(quality)
        if self._features is None:
            return TeacherComparison(quality)
        with exclusive():  # the extractor may be on the engine's device
            features = self._features(images)
        distance = float(np.linalg.norm(features[0] - features[1]))
        metrics.fidelity_distance.labels(tier, arm).observe(distance)
        window = self._windows.get((tier, arm))
        if window is None or window.digest != plan.entry.digest:
            window = self._windows[tier, arm] = FeatureWindow(plan.entry.digest)
        rfid = window.add(features[0], features[1])
        if rfid is not None:
            metrics.rfid.labels(tier, arm).set(rfid)
        return TeacherComparison(quality, distance, rfid)


def shadow_of(spec: ImageSpec, teacher: ActiveSchedule) -> ImageSpec:
    """The spec of the same image made by the teacher, with the same LoRAs, from the same start, in idle time."""
    program = spec.edit.program(teacher.program) if spec.edit else teacher.program
    own = replace(spec, program=program, tier=LABEL, arm=metrics.NO_ARM, deadline=math.inf, previews=0)
    return replace(own, idle=True, background=False)
