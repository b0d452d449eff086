"""The schedule: a frozen document that says what each step of the teacher's trajectory does. Data only, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple, Self, get_args

from pydantic import Field, JsonValue, ValidationError, model_validator

from registry.corrections import Correction, ScaledCorrections, at_scale
from registry.document import Document, Name, canonical, first_fault, misfit
from registry.errors import InvalidInput, Unsupported
from registry.segment import Blocks as Blocks
from registry.segment import Branch as Branch
from registry.segment import Segment as Segment
from registry.segment import parse_branch as parse_branch
from registry.segment import said as said

FORMAT: Final = 1
MAX_TEACHER_STEPS = 1000

Kind = Literal["full", "partial", "null"]
SolverName = Literal["ddim", "dpmsolver++", "euler", "euler-ancestral", "lcm"]
Spacing = Literal["leading", "trailing", "linspace"]
KARRAS: Final = ("dpmsolver++", "euler")  # solvers that have those levels
STOCHASTIC: Final = ("euler-ancestral", "lcm")  # that add fresh noise between steps


Family = Literal[
    "unet2d-condition", "unet2d", "dit-transformer2d", "pixart-transformer2d", "sd3-transformer2d", "flux-transformer2d"
]
TRANSFORMERS: Final = tuple(name for name in get_args(Family) if "transformer" in name)  # families whose branches are `Blocks`


class ModelRef(Document):
    """Which weights the schedule was made for. `fingerprint` covers weights and configuration."""

    name: Name
    family: Family
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Solver(Document):
    """The update rule and the teacher's timesteps, named as in diffusers; `karras`: on the levels of arXiv 2206.00364.

    `clip`: DPM-Solver++ bounds the predicted clean latent where DDIM does, on models whose makers clip it. In diffusers that is
    `thresholding`, at its default limit of 1. Stochastic solvers add fresh noise between steps, an image's by its seed.
    """

    name: SolverName
    teacher_steps: int = Field(ge=1, le=MAX_TEACHER_STEPS)
    spacing: Spacing
    karras: bool = Field(default=False, exclude_if=lambda on: not on)  # left out: documents without it keep their digest
    clip: bool = Field(default=False, exclude_if=lambda on: not on)

    @model_validator(mode="after")
    def _karras_where_diffusers_has_it(self) -> Self:
        if self.karras and self.name not in KARRAS:
            raise misfit(f"the solver {self.name} has no Karras noise levels; {' and '.join(KARRAS)} have", "karras")
        return self

    @model_validator(mode="after")
    def _lcm_has_one_spacing(self) -> Self:
        if self.name == "lcm" and self.spacing != "trailing":
            raise misfit(f"the solver lcm has timesteps of its own, which are trailing; got {self.spacing}", "spacing")
        return self

    @model_validator(mode="after")
    def _clip_where_it_is_a_choice(self) -> Self:
        if self.clip and self.name != "dpmsolver++":
            raise misfit("a choice of dpmsolver++ only: ddim clips as the model's makers say, euler never does", "clip")
        return self


class Validated(Document):
    """Where the schedule holds: image sizes (height, width) in pixels at which it was measured, and guidance scales at which it
    was, by a search of today only those at which it is no worse than what is set by hand.

    `default_guidance` is the scale that it was made for, where it was measured at several.
    """

    sizes: tuple[tuple[int, int], ...]
    guidance: tuple[float, ...]
    default_guidance: float | None = Field(default=None, exclude_if=lambda scale: scale is None)


class Cost(Document):
    """MACs of the UNet for one image of `rows` UNet rows (2 with guidance), and relative to the teacher."""

    macs: int = Field(ge=0)
    rows: Literal[1, 2]
    relative: float = Field(ge=0)


class Fidelity(Document):
    """Against the teacher from the same noise and prompts; `psnr` in dB, `rfid` depends on the feature extractor.

    `accuracy` is the share of images that a classifier takes for what the prompt names, where the features are one's.
    """

    rfid: float
    psnr: float
    images: int = Field(ge=1)
    clip_score: float | None = None
    accuracy: float | None = Field(default=None, exclude_if=lambda share: share is None)


class Step(NamedTuple):
    """One step of the teacher's trajectory. `branch` is 0 unless the step is partial."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a step
    kind: Kind
    branch: Branch


class Schedule(Document):
    """The document. The fields of `IDENTITY` are its identity; the rest only describes it.

    `timesteps`, where there are any, are those of the computed steps, in their order, instead of the solver's own: re-aligned
    to what the steps reuse (as BudCache does, arXiv 2606.13496). `corrections`, one for each computed step, move the solver's
    numbers, whatever the guidance scale; `scaled_corrections` do so by the scale, and are in ascending order of it. Without
    these fields the identity is what it was before they were there.
    """

    format: Literal[1] = FORMAT
    model: ModelRef
    solver: Solver
    segments: tuple[Segment, ...] = Field(min_length=1)
    timesteps: tuple[int, ...] | None = Field(default=None, exclude_if=lambda timesteps: timesteps is None)
    corrections: tuple[Correction, ...] | None = Field(default=None, exclude_if=lambda corrections: corrections is None)
    scaled_corrections: tuple[ScaledCorrections, ...] | None = Field(
        default=None, min_length=1, exclude_if=lambda corrections: corrections is None
    )
    validated: Validated | None = None
    cost: Cost | None = None
    fidelity: Fidelity | None = None
    provenance: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _fits_the_trajectory(self) -> Self:
        steps, count = self.solver.teacher_steps, len(self.segments)
        if steps % count:
            raise misfit(f"their number ({count}) must divide teacher_steps ({steps})", "segments")
        for i, segment in enumerate(self.segments):
            if segment.partial and segment.partial[-1] >= self.length:
                text = f"offset {segment.partial[-1]} is past the segment's end; the limit is {self.length - 1}"
                raise misfit(text, "segments", i, "partial")
        return self

    @model_validator(mode="after")
    def _branches_are_of_the_family(self) -> Self:
        for i, segment in enumerate(self.segments):
            if segment.partial and (segment.back is not None) != (self.model.family in TRANSFORMERS):
                text = "must be left out" if segment.back is not None else "is missing, the number of the last blocks"
                raise misfit(f"{text}, where the model is a {self.model.family}", "segments", i, "back")
        return self

    @model_validator(mode="after")
    def _timesteps_are_the_computed_steps(self) -> Self:
        if self.timesteps is None:
            return self
        if len(self.timesteps) != self.computed:
            text = f"must be one for each of the {self.computed} computed steps, got {len(self.timesteps)}"
            raise misfit(text, "timesteps")
        if list(self.timesteps) != sorted(set(self.timesteps), reverse=True) or self.timesteps[-1] < 0:
            raise misfit(f"must descend and not go below 0, got {list(self.timesteps)}", "timesteps")
        if self.solver.karras:
            raise misfit("with karras the noise levels decide; take one of them away", "timesteps")
        return self

    @model_validator(mode="after")
    def _a_correction_for_each_computed_step(self) -> Self:
        if self.corrections is not None and len(self.corrections) != self.computed:
            text = f"must be one for each of the {self.computed} computed steps, got {len(self.corrections)}"
            raise misfit(text, "corrections")
        return self

    @model_validator(mode="after")
    def _scaled_corrections_are_of_ascending_scales(self) -> Self:
        if self.scaled_corrections is None:
            return self
        if self.corrections is not None:
            raise misfit("corrections are of all scales already; take one of the two away", "scaled_corrections")
        scales = [fitted.guidance for fitted in self.scaled_corrections]
        if scales != sorted(set(scales)):
            raise misfit(f"guidance must ascend, got {scales}", "scaled_corrections")
        for i, fitted in enumerate(self.scaled_corrections):
            if len(fitted.corrections) != self.computed:
                text = f"must be one for each of the {self.computed} computed steps, got {len(fitted.corrections)}"
                raise misfit(text, "scaled_corrections", i, "corrections")
        return self

    @model_validator(mode="after")
    def _extrapolations_have_something_to_start_from(self) -> Self:
        fits: list[tuple[tuple[str | int, ...], tuple[Correction, ...]]] = [(("corrections",), self.corrections or ())]
        for i, fitted in enumerate(self.scaled_corrections or ()):
            fits.append((("scaled_corrections", i, "corrections"), fitted.corrections))
        for place, corrections in fits:
            for i, correction in enumerate(corrections):
                if correction.extrapolation and i not in self.extrapolating:
                    text = "must be 0 unless the partial steps before and after this full step are of one branch"
                    raise misfit(f"{text}, got {correction.extrapolation:g}", *place, i, "extrapolation")
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a document. `Unsupported` for another format, `InvalidInput` naming the first field at fault."""
        try:
            raw = json.loads(data)
            canonical(raw)  # NaN and lone surrogates can be read but never written back
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"is not valid JSON: {error}", param="schedule") from error
        if not isinstance(raw, dict):
            raise InvalidInput(f"must be a JSON object, got {type(raw).__name__}", param="schedule")
        if raw.get("format", FORMAT) != FORMAT:
            raise Unsupported(f"this version reads {FORMAT}, got {raw['format']!r}", param="format")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            fault = first_fault(error)
            raise InvalidInput(fault.text, param=fault.param) from error

    @property
    def length(self) -> int:
        """How many steps a segment has."""
        return self.solver.teacher_steps // len(self.segments)

    @property
    def computed(self) -> int:
        """How many steps are full or partial."""
        return len(self.segments) + sum(len(segment.partial) for segment in self.segments)

    @property
    def extrapolating(self) -> set[int]:
        """The computed steps, by number, whose deep feature may be extrapolated: one of the same branch was reused before."""
        found, step = set[int](), 0
        last: Branch = 0
        for segment in self.segments:
            if segment.partial:
                if segment.computes == last:
                    found.add(step)
                last = segment.computes
            step += 1 + len(segment.partial)
        return found

    def corrections_at(self, guidance: float) -> tuple[Correction, ...] | None:
        """The corrections of the computed steps for images of this scale; None without any."""
        return self.corrections if self.scaled_corrections is None else at_scale(self.scaled_corrections, guidance)

    def for_scale(self, guidance: float) -> Schedule:
        """The schedule with the corrections of this scale alone: at any other, images differ."""
        if self.scaled_corrections is None:
            return self
        return self.model_copy(update={"corrections": self.corrections_at(guidance), "scaled_corrections": None})

    @property
    def branches(self) -> set[Branch]:
        """Those of its partial steps."""
        return {segment.computes for segment in self.segments if segment.partial}

    def steps(self) -> Iterator[Step]:
        """Every step of the teacher's trajectory, in the order of sampling."""
        for s, segment in enumerate(self.segments):
            for offset in range(self.length):
                index = s * self.length + offset
                if offset == 0:
                    yield Step(index, "full", 0)
                elif offset in segment.partial:
                    yield Step(index, "partial", segment.computes)
                else:
                    yield Step(index, "null", 0)

    def counts(self) -> dict[Kind, int]:
        """How many steps of each kind one image takes."""
        counts: dict[Kind, int] = {"full": 0, "partial": 0, "null": 0}
        for step in self.steps():
            counts[step.kind] += 1
        return counts

    @property  # not cached: pydantic's model_copy(update=…) would carry the old digest into the copy
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the identity's canonical JSON."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", include=IDENTITY))).hexdigest()

    def document(self) -> bytes:
        """The canonical JSON of the whole document: what a registry stores."""
        fields = self.model_dump(mode="json", exclude_none=True)
        if self.provenance is not None:  # whose own nulls are data
            fields["provenance"] = self.provenance
        return canonical(fields)


IDENTITY = {"format", "model", "solver", "segments", "timesteps", "corrections", "scaled_corrections"}


def teacher(model: ModelRef, solver: Solver) -> Schedule:
    """The unaccelerated model as a schedule: every step is full."""
    return Schedule(model=model, solver=solver, segments=(Segment(),) * solver.teacher_steps)
