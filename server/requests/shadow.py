"""The shadow teacher: a sampled share of finished images is made again by the teacher, from the same prompt and noise, while
the engine would idle. What lies between the two is the fidelity that clients really got."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from typing_extensions import override

from server.batching.image_task import ImageResult, ImageSpec
from server.requests.context import OK, RequestContext
from server.requests.fidelity import Fidelities, TeacherComparison
from server.requests.generation import RequestObserver
from server.requests.idle_images import IdleImages, shadow_of
from server.requests.plan import Plan
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule


class ComparisonObserver(Protocol):
    """Something that wants to know how close images are to the teacher's."""

    def compared(self, plan: Plan, comparison: TeacherComparison) -> None:
        """Called for each image that was held against the teacher's, in the event loop."""


class ShadowTeacher(RequestObserver):
    """Offered each finished request; works in the event loop, and compares beside it."""

    def __init__(
        self,
        idle: IdleImages,
        teacher: Callable[[], ActiveSchedule],
        fidelities: Fidelities,
        share: float,
        observers: Sequence[ComparisonObserver] = (),
        dice: Callable[[], float] = random.random,
    ) -> None:
        """`share` of the images is sampled, 0 for none."""
        self._idle, self._teacher, self._fidelities = idle, teacher, fidelities
        self._share, self._observers, self._dice = share, observers, dice

    @override
    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """Maybe make some of its images again. The teacher's own are not held against themselves."""
        teacher = self._teacher()
        if context.code != OK or plan.entry.digest == teacher.digest:
            return
        for image, result in context.results.items():
            if self._dice() < self._share:
                spec = shadow_of(plan.specs[image], teacher)
                self._idle.begin([spec], partial(self._compare, plan, result, spec), _count)

    async def _compare(self, plan: Plan, result: ImageResult, spec: ImageSpec) -> None:
        again = await self._idle.make(spec)
        tier, arm = plan.entry.label, plan.arm_label
        of, window = plan.entry.digest, ("served", tier, arm)
        (comparison,) = await self._fidelities.compare([result.pixels], again.pixels, [window], of)
        metrics.fidelity_psnr.labels(tier, arm).observe(comparison.psnr)
        if comparison.distance is not None:
            metrics.fidelity_distance.labels(tier, arm).observe(comparison.distance)
        if comparison.rfid is not None:
            metrics.rfid.labels(tier, arm).set(comparison.rfid)
        for observer in self._observers:
            observer.compared(plan, comparison)


def _count(outcome: str) -> None:
    metrics.shadow_images_total.labels(outcome).inc()
