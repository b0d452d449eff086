"""Makes a plan of a request: chooses its schedule, counts its work and predicts when its images would be done."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from time import monotonic

from engine.guidance import OFF, covers, meant, validated_scales
from engine.image_size import ImageSize, covers_size, measured_sizes
from engine.model import Model
from engine.notice import Notice
from engine.program import Program
from registry.errors import InvalidInput
from registry.tiers import REFERENCE
from registry.writer import now
from server.access.keys import Key
from server.api import AUTO, GenerateRequest
from server.batching.image_task import Edit, ImageSpec, preview_places
from server.config import Settings
from server.request_fields import BACKGROUND
from server.requests import warnings
from server.requests.assignment import Assigner, Assignment
from server.requests.covariates import Covariates
from server.requests.editing import wished
from server.requests.image_file import ImageFormat
from server.requests.lora_choice import LoraChoice
from server.requests.plan import Plan
from server.requests.prompt_pair import PromptPair, PromptReader
from server.requests.tier_choice import TierChoice, seconds_of
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule, ActiveSchedules
from server.tiers.guidance import DefaultGuidance

Forecast = Callable[[Program, int, int, str, ImageSize | None, int], float]
"""(program, UNet rows of an image, images, tier, size, chunks) -> seconds until they would be done if they came now."""


class Planner:
    """Chooses by what is in force and by the present load. Nothing is queued here."""

    def __init__(
        self,
        schedules: ActiveSchedules,
        assigner: Assigner,
        model: Model,
        forecast: Forecast,
        settings: Settings,
        others: Collection[ImageSize] = (),
        prompts: PromptReader | None = None,
        loras: LoraChoice | None = None,
    ) -> None:
        """`others`: sizes that requests may ask for beside the model's own. prompts: without it, prompts are of one chunk.

        loras: without it, there are none.
        """
        self.sizes = (model.image_size, *others)
        self.default_guidance = DefaultGuidance(schedules, model, settings.default_guidance, settings.default_tier)
        self._schedules = schedules
        self._assigner = assigner
        self.model = model
        self._forecast = forecast
        self._settings = settings
        self._tiers = TierChoice(schedules, settings.default_tier)
        self.prompts = prompts or PromptReader(model.prompts)
        self._loras = loras or LoraChoice()

    def limit(self, request: GenerateRequest) -> float:
        """The seconds that it may take at most, from its arrival on."""
        return min(seconds_of(request), self._settings.request_seconds)

    def usual(self, entry: ActiveSchedule) -> tuple[int, float]:
        """(MACs, predicted seconds) of one image by a schedule, for a request that says nothing else."""
        rows = self.model.rows(self.default_guidance.of(entry))
        macs = self.model.macs.of_program(entry.program, rows)
        return macs, self._forecast(entry.program, rows, 1, entry.label, None, 1)

    async def plan(
        self, request: GenerateRequest, request_id: str, key: Key, arrived: float | None = None, previews: int = 0
    ) -> Plan:
        """Plan a request. It may wait for the registry if it names a schedule.

        arrived: when the request came, by the monotonic clock; now, if absent. previews: how many of each image are wanted.

        The number of images is checked where requests come in. Raises `InvalidInput`, `NotFound` and `StoreUnavailable`, which
        name the field.
        """
        arrived = monotonic() if arrived is None else arrived
        adapters = self._loras.of(request)
        size, edit, unmet = await self._start(request)
        prompts = await self.prompts.read(request)
        entry, assignment, unchosen = await self._choose(request, request_id, prompts, edit)
        unmet += [*unchosen, *self._loras.unmet(adapters, entry.schedule)]
        guidance = self._guidance(request, entry)
        if guidance > OFF and not self.model.prompts.guides:
            raise InvalidInput("this model has no guidance: leave it out, or say 1", param="guidance_scale")
        rows = self.model.rows(guidance)
        unmet += [*self._guidance_warnings(request, entry, guidance), *prompts.cut(rows, self.model.prompts.tokens)]
        if not covers_size(entry.schedule, size, self.model.image_size):
            unmet.append(warnings.size_not_validated(size, measured_sizes(entry.schedule, self.model.image_size)))
        if prompts.prompt != request.prompt:
            unmet.append(warnings.prompt_ignored())
        run = self._run(self.model.other_size(size), edit)
        program, whole = run(entry.program), entry.schedule.solver.teacher_steps
        if edit and edit.strength * whole < 1:
            unmet.append(warnings.one_step_runs(edit.strength, whole))
        steps = len(program.steps)
        if (made := len(preview_places(steps, previews))) < previews:
            unmet.append(warnings.fewer_previews(previews, made, steps))
        image_format = ImageFormat(request.output_format, request.output_compression, request.lossless)
        unmet += warnings.of_the_format(image_format)
        if assignment and assignment.arm:
            metrics.assignment_total.labels(assignment.experiment.name, assignment.arm).inc()
        first = ImageSpec(
            program=program,
            prompt=prompts.prompt,
            negative=prompts.negative,
            guidance=guidance,
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            size=self.model.other_size(size),
            tier=entry.label,
            arm=(assignment and assignment.arm) or metrics.NO_ARM,
            deadline=arrived + seconds_of(request),
            key=key.name,
            key_seconds=key.queue_seconds,
            previews=previews,
            request_id=request_id,
            edit=edit,
            keeps=edit is not None and edit.source.painted is not None and not self.model.inpaints,
            embedded=self.model.embeds_guidance,
            background=request.priority == BACKGROUND,
            chunks=prompts.chunks(rows),
            syntax=prompts.syntax,
            adapters=adapters,
        )
        macs = self.model.macs_at(first.size, first.chunks).of_program(program, first.unet_rows)
        relative_cost = self._schedules.relative_cost(entry, first.size, first.chunks, run if edit or first.size else None)
        first = replace(first, teacher_macs=round(macs / relative_cost))
        specs = [replace(first, seed=first.seed + i) for i in range(request.num_images)]
        return Plan(
            key=key,
            entry=entry,
            specs=specs,
            macs=len(specs) * macs,
            predicted=self._predicted(request, entry, prompts, edit),
            image_format=image_format,
            size=size,
            relative_cost=relative_cost,
            assignment=assignment,
            warnings=(*self.model.notices, *unmet),
        )

    def _size(self, request: GenerateRequest) -> ImageSize:
        """Of the request's images. Raises `InvalidInput` naming the sizes that there are."""
        asked = {str(size): size for size in self.sizes} | {None: self.sizes[0], AUTO: self.sizes[0]}
        if request.size not in asked:
            made = ", ".join(map(str, self.sizes)) if len(self.sizes) > 1 else f"{self.sizes[0]} only"
            raise InvalidInput(f"this server makes {made}: leave size out, or say auto", param="size")
        return asked[request.size]

    async def _start(self, request: GenerateRequest) -> tuple[ImageSize, Edit | None, list[Notice]]:
        """The size of the request's images, what they start from, and what is to be said of that."""
        size = self._size(request)
        if request.image is None:
            return size, None, []
        wish = await asyncio.to_thread(wished, request, self.sizes, self.model.decoder.scale)
        stretched = [] if wish.stretched is None else [warnings.aspect_changed(wish.stretched, wish.size)]
        return wish.size, wish.edit, stretched

    def _guidance(self, request: GenerateRequest, entry: ActiveSchedule) -> float:
        """The scale that the request gets from a schedule."""
        asked = request.guidance_scale
        return self.default_guidance.of(entry) if asked is None else meant(asked)

    def _run(self, size: ImageSize | None, edit: Edit | None) -> Callable[[Program], Program]:
        """What images of a size run of a program, and of one that they start from."""

        def run(whole: Program) -> Program:
            sized = self.model.sized(whole, size)
            return edit.program(sized) if edit else sized

        return run

    def _predicted(self, request: GenerateRequest, entry: ActiveSchedule, prompts: PromptPair, edit: Edit | None) -> float:
        rows = self.model.rows(self._guidance(request, entry))
        size = self.model.other_size(edit.size if edit else self._size(request))
        program = self._run(size, edit)(entry.program)
        seconds = self._loras.seconds(self._loras.of(request))
        return seconds + self._forecast(program, rows, request.num_images, entry.label, size, prompts.chunks(rows))

    async def _choose(
        self, request: GenerateRequest, request_id: str, prompts: PromptPair, edit: Edit | None
    ) -> tuple[ActiveSchedule, Assignment | None, list[Notice]]:
        """The schedule that the request names, or what its tier means, as an experiment on it says; and unmet wishes.

        Background work is in no experiment: how long it waits says nothing of its schedule.
        """
        in_background = request.priority == BACKGROUND
        if request.schedule is not None:
            entry = await self._schedules.find(request.schedule)
            return entry, None if in_background else self._assigner.bypassed(entry.digest), []
        tier, unmet = self._tiers.of(request, lambda offer: self._predicted(request, offer, prompts, edit))
        if in_background:
            return tier, None, unmet
        entry, assignment = self._assigner.assign(tier, request.unit, request_id)
        if assignment and assignment.arm:
            assignment = replace(assignment, covariates=self._covariates(request, tier, prompts, edit))
        if assignment and assignment.arm and assignment.fallback:
            unmet.append(warnings.arm_not_served(assignment.experiment.name, assignment.arm))
        return entry, assignment, unmet

    def _covariates(self, request: GenerateRequest, tier: ActiveSchedule, prompts: PromptPair, edit: Edit | None) -> Covariates:
        """What is known of a request before an experiment on its tier assigns it: no arm has a part in it."""
        size, guidance = edit.size if edit else self._size(request), self._guidance(request, tier)
        rows = self.model.rows(guidance)
        teacher = self._schedules.tier(REFERENCE).program
        other = self.model.other_size(size)
        macs = self.model.macs_at(other, prompts.chunks(rows)).of_program(self._run(other, edit)(teacher), rows)
        return Covariates(
            arrived=now(),
            images=request.num_images,
            pixels=size.width * size.height,
            prompt_characters=len(request.prompt),
            guidance=guidance,
            predicted_seconds=self._predicted(request, tier, prompts, edit),
            teacher_macs=request.num_images * macs,
        )

    def _guidance_warnings(self, request: GenerateRequest, entry: ActiveSchedule, guidance: float) -> list[Notice]:
        """What is to be said of the scale that the request gets from its schedule."""
        unmet, validated = list[Notice](), validated_scales(entry.schedule)
        if validated and not covers(entry.schedule, guidance):
            fitted = [fit.guidance for fit in entry.schedule.scaled_corrections or ()]
            unmet.append(warnings.guidance_not_validated(guidance, validated, fitted))
        rows = self.model.rows(guidance)
        if rows == 2 and self.model.few_steps:
            unmet.append(warnings.guidance_on_distilled_model(guidance, self.model.few_steps))
        if rows == 1 and request.negative_prompt:
            unmet.append(warnings.negative_prompt_ignored(self.model.embeds_guidance))
        return unmet
