"""What a request amounts to: which schedule, which images, how much work, and when they should be done."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from engine.macs import StepMacs
from engine.program import Program
from registry.tiers import REFERENCE
from server.access.keys import Key
from server.api import AUTO, GenerateRequest
from server.batching.image_task import ImageSpec
from server.config import Settings
from server.requests.assignment import Assigner, Assignment
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule, ActiveSchedules

Forecast = Callable[[Program, int, int, str], float]
"""(program, UNet rows of an image, images, tier) -> seconds until they would be done if they came now."""


@dataclass(frozen=True)
class Plan:
    """The schedule, a spec for each image, their MACs and the predicted seconds.

    `assignment` says what an experiment on its tier made of it.
    """

    key: Key
    entry: ActiveSchedule
    specs: Sequence[ImageSpec]
    macs: int
    predicted: float
    assignment: Assignment | None = None

    @property
    def request_id(self) -> str:
        """The request that it was made for."""
        return self.specs[0].request_id

    @property
    def seed(self) -> int:
        """The first image's seed; image i has seed + i."""
        return self.specs[0].seed

    @property
    def arm(self) -> str | None:
        """The arm of an experiment that serves the request, if it is enrolled in one."""
        return self.assignment.arm if self.assignment else None

    @property
    def arm_label(self) -> str:
        """The arm under which its work is counted."""
        return self.specs[0].arm


class Planner:
    """Chooses by what is in force and by the present load. Nothing is queued here."""

    def __init__(
        self,
        schedules: ActiveSchedules,
        assigner: Assigner,
        macs: StepMacs,
        forecast: Forecast,
        settings: Settings,
        guides: bool = True,
    ) -> None:
        """`guides`: whether the model knows classifier-free guidance; one that does not gets the scale 1 by default."""
        self._schedules = schedules
        self._assigner = assigner
        self._macs = macs
        self._forecast = forecast
        self._settings = settings
        self._guidance = settings.default_guidance if guides else 1.0

    def limit(self, request: GenerateRequest) -> float:
        """The seconds that it may take at most, from its arrival on."""
        return min(_deadline(request), self._settings.request_seconds)

    async def plan(self, request: GenerateRequest, request_id: str, key: Key, arrived: float | None = None) -> Plan:
        """Plan a request. It may wait for the registry if it names a schedule.

        arrived: when the request came, by the monotonic clock; now, if absent.

        The number of images is checked where requests come in. Raises `InvalidInput`, `NotFound` and `StoreUnavailable`, which
        name the field.
        """
        arrived = monotonic() if arrived is None else arrived
        guidance = request.guidance_scale or self._guidance
        unet_rows = 1 if guidance == 1 else 2
        entry, assignment = await self._choose(request, request_id, unet_rows)
        if assignment and assignment.arm:
            metrics.assignment_total.labels(assignment.experiment.name, assignment.arm).inc()
        first = ImageSpec(
            program=entry.program,
            prompt=request.prompt,
            negative=request.negative_prompt,
            guidance=guidance,
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            tier=entry.label,
            arm=(assignment and assignment.arm) or metrics.NO_ARM,
            deadline=arrived + _deadline(request),
            key=key.name,
            key_seconds=key.queue_seconds,
            teacher_macs=round(self._macs.of_program(entry.program, unet_rows) / entry.relative_cost),
            request_id=request_id,
        )
        specs = [replace(first, seed=first.seed + i) for i in range(request.num_images)]
        macs = len(specs) * self._macs.of_program(entry.program, unet_rows)
        predicted = self._predicted(entry, unet_rows, request.num_images)
        return Plan(key, entry, specs, macs, predicted, assignment)

    def _predicted(self, entry: ActiveSchedule, unet_rows: int, images: int) -> float:
        return self._forecast(entry.program, unet_rows, images, entry.label)

    async def _choose(
        self, request: GenerateRequest, request_id: str, unet_rows: int
    ) -> tuple[ActiveSchedule, Assignment | None]:
        """The schedule that the request names, or what its tier means, as an experiment on it says."""
        if request.schedule is not None:
            entry = await self._schedules.find(request.schedule)
            return entry, self._assigner.bypassed(entry.digest)
        return self._assigner.assign(self._tier(request, unet_rows), request.unit, request_id)

    def _tier(self, request: GenerateRequest, unet_rows: int) -> ActiveSchedule:
        """What the request's tier means, before any experiment: who is enrolled must not depend on the arm.

        `auto` with a deadline means the dearest tier below the teacher that should keep it, or the cheapest when none
        should; without a deadline, the default tier.
        """
        if request.tier not in (None, AUTO):
            return self._schedules.tier(request.tier)
        if request.tier is None or request.deadline_ms is None:
            return self._schedules.tier(self._schedules.default(self._settings.default_tier))
        tiers = self._schedules.tiers()  # the cheapest first
        offers = [entry for entry in tiers if entry.tier != REFERENCE] or tiers
        keeping = (
            offer for offer in reversed(offers) if self._predicted(offer, unet_rows, request.num_images) <= _deadline(request)
        )
        return next(keeping, offers[0])


def _deadline(request: GenerateRequest) -> float:
    """How many seconds after its arrival a request must be done."""
    return math.inf if request.deadline_ms is None else request.deadline_ms / 1000
