"""A candidate in the shadow: of a sampled share of a tier's finished images, the teacher, what the tier means and the candidate
make the same image again while the engine would idle, each alone. So the two schedules are compared on the prompts and the
noise of live requests, and timed alike, before anybody gets an image of the candidate."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from typing_extensions import override

from registry.errors import FlexiError
from registry.experiments.candidates import DeclaredCandidate
from server.batching.image_task import ImageResult, ImageSpec
from server.errors import GenerationFailed
from server.requests.context import OK, RequestContext
from server.requests.fidelity import Fidelities, TeacherComparison
from server.requests.generation import RequestObserver
from server.requests.idle_images import IdleImages, shadow_of
from server.requests.plan import Plan
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule

ACTIVE, CANDIDATE = "active", "candidate"


@dataclass(frozen=True)
class ActiveCandidate:
    """A candidate that this server makes images with: verified, compiled, and for nobody's eyes."""

    candidate: DeclaredCandidate
    entry: ActiveSchedule


@dataclass(frozen=True)
class PairedImage:
    """One image of a pair. macs: of its UNet calls; seconds: of its waves, in which it was alone."""

    macs: int
    seconds: float
    comparison: TeacherComparison


@dataclass(frozen=True)
class CandidatePair:
    """What the tier means and its candidate made of one prompt and noise; `failed` is the code of the candidate's error."""

    candidate: ActiveCandidate
    images: tuple[PairedImage, PairedImage] | None
    failed: str | None = None


class Candidates(Protocol):
    """Knows the candidates of tiers, and wants to know what they made."""

    def of(self, plan: Plan) -> ActiveCandidate | None:
        """The candidate that this plan's images say something of, if there is one."""

    def paired(self, plan: Plan, pair: CandidatePair) -> None:
        """Called in the event loop for each image that was made again."""


class ShadowCandidate(RequestObserver):
    """Offered each finished request; works in the event loop, and compares beside it."""

    def __init__(
        self,
        idle: IdleImages,
        teacher: Callable[[], ActiveSchedule],
        fidelities: Fidelities,
        candidates: Candidates,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._idle, self._teacher, self._fidelities = idle, teacher, fidelities
        self._candidates, self._dice = candidates, dice

    @override
    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """Maybe make some of its images again."""
        candidate, teacher = self._candidates.of(plan), self._teacher()
        if candidate is None or context.code != OK or teacher.digest in (plan.entry.digest, candidate.entry.digest):
            return
        for image, result in context.results.items():
            if self._dice() < candidate.candidate.share:
                self._begin(plan, plan.specs[image], result, teacher, candidate)

    def _begin(
        self, plan: Plan, spec: ImageSpec, result: ImageResult, teacher: ActiveSchedule, candidate: ActiveCandidate
    ) -> None:
        def count(outcome: str) -> None:
            metrics.candidate_images_total.labels(plan.entry.label, outcome).inc()

        try:
            specs = [shadow_of(spec, entry) for entry in (teacher, plan.entry, candidate.entry)]
        except FlexiError:  # of an edit's strength, which leaves the candidate nothing to do
            count("failed")
            return
        self._idle.begin(specs, partial(self._compare, plan, result, candidate, *specs), count)

    async def _compare(
        self,
        plan: Plan,
        result: ImageResult,
        candidate: ActiveCandidate,
        teachers: ImageSpec,
        actives: ImageSpec,
        candidates: ImageSpec,
    ) -> None:
        """The teacher's image comes first: whatever has to be read or encoded for the prompt, it costs neither of the pair.

        Of these, now one is first and now the other, by the seed: what a device gains or loses meanwhile favours neither.
        """
        reference = await self._idle.make(teachers)
        again = dict[str, ImageResult | GenerationFailed]()
        turns = {ACTIVE: actives, CANDIDATE: candidates}
        for name in turns if teachers.seed % 2 else reversed(turns):
            again[name] = await self._attempt(turns[name])
        active, other = again[ACTIVE], again[CANDIDATE]
        if isinstance(active, GenerationFailed):
            raise active
        if isinstance(other, GenerationFailed):
            self._candidates.paired(plan, CandidatePair(candidate, None, other.code))
            raise other
        tier, of = plan.entry.label, f"{plan.entry.digest} {candidate.entry.digest}"
        windows = [("pair", tier, name) for name in (ACTIVE, CANDIDATE)]
        compared = await self._fidelities.compare([result.pixels, other.pixels], reference.pixels, windows, of)
        pair = _paired(active, compared[0]), _paired(other, compared[1])
        _tell(tier, dict(zip((ACTIVE, CANDIDATE), pair, strict=True)))
        self._candidates.paired(plan, CandidatePair(candidate, pair))

    async def _attempt(self, spec: ImageSpec) -> ImageResult | GenerationFailed:
        try:
            return await self._idle.make(spec)
        except GenerationFailed as error:  # its schedule's doing, unlike a server's that stops
            return error


def _paired(image: ImageResult, comparison: TeacherComparison) -> PairedImage:
    return PairedImage(image.macs, image.wave_seconds, comparison)


def _tell(tier: str, pair: dict[str, PairedImage]) -> None:
    """Tell Prometheus: both are of the same prompts and noise, so that their figures may be held against each other."""
    for schedule, image in pair.items():
        metrics.candidate_macs_total.labels(tier, schedule).inc(image.macs)
        metrics.candidate_wave_seconds_total.labels(tier, schedule).inc(image.seconds)
        metrics.candidate_psnr.labels(tier, schedule).observe(image.comparison.psnr)
        if image.comparison.distance is not None:
            metrics.candidate_distance.labels(tier, schedule).observe(image.comparison.distance)
        if image.comparison.rfid is not None:
            metrics.candidate_rfid.labels(tier, schedule).set(image.comparison.rfid)
