"""The schedule: a frozen document that says what each step of the teacher's trajectory does. Data only, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from registry.errors import InvalidInput, Unsupported

FORMAT: Final = 1
MAX_TEACHER_STEPS = 1000

Kind = Literal["full", "partial", "null"]
SolverName = Literal["ddim", "dpmsolver++", "euler"]
Spacing = Literal["leading", "trailing", "linspace"]
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


class Document(BaseModel):
    """Frozen, strict about names: an unknown field is an error, never silently dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(Document):
    """Which weights the schedule was made for. `fingerprint` covers weights and configuration."""

    name: Name
    family: Literal["unet2d-condition", "unet2d"]
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Solver(Document):
    """The update rule and the teacher's timesteps, named as in diffusers; `karras`: on the levels of arXiv 2206.00364."""

    name: SolverName
    teacher_steps: int = Field(ge=1, le=MAX_TEACHER_STEPS)
    spacing: Spacing
    karras: bool = Field(default=False, exclude_if=lambda on: not on)  # left out, so that older documents keep their digest

    @model_validator(mode="after")
    def _karras_where_diffusers_has_it(self) -> Self:
        if self.karras and self.name == "ddim":
            raise ValueError("karras: the solver ddim has no Karras noise levels; dpmsolver++ and euler have")
        return self


class Segment(Document):
    """One piece of the trajectory: full at offset 0, partial at the offsets `partial`, null elsewhere.

    `branch` says how much of the UNet the partial steps compute: 1-based, counted from the output side (the "skip
    branch" of DeepCache, arXiv 2312.00858). Without partial steps it has no meaning and must be 1, so that one
    behaviour has one digest.
    """

    partial: tuple[int, ...] = ()
    branch: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _offsets(self) -> Self:
        if list(self.partial) != sorted(set(self.partial)):
            raise ValueError(f"partial: offsets must be sorted and distinct, got {list(self.partial)}")
        if self.partial and self.partial[0] < 1:
            raise ValueError(f"partial: offset 0 is the full step, offsets start at 1, got {self.partial[0]}")
        if not self.partial and self.branch != 1:
            raise ValueError(f"branch: must be 1 in a segment without partial steps, got {self.branch}")
        return self


class Correction(Document):
    """What one computed step adds to its solver's own numbers (`engine.program`), fitted to land on the teacher's path.

    `guidance` is a factor on the request's guidance scale; the others are added to what the next latent takes of the latent
    now, of the UNet's guided output, and of the clean latent predicted one step before.
    """

    guidance: float = Field(default=1.0, ge=-100, le=100)
    latent: float = Field(default=0.0, ge=-100, le=100)
    output: float = Field(default=0.0, ge=-100, le=100)
    before: float = Field(default=0.0, ge=-100, le=100)


class Validated(Document):
    """Where the schedule's fidelity was measured: image sizes (height, width) in pixels and guidance scales."""

    sizes: tuple[tuple[int, int], ...]
    guidance: tuple[float, ...]


class Cost(Document):
    """MACs of the UNet for one image of `rows` UNet rows (2 with guidance), and relative to the teacher."""

    macs: int = Field(ge=0)
    rows: Literal[1, 2]
    relative: float = Field(ge=0)


class Fidelity(Document):
    """Against the teacher from the same noise and prompts; `psnr` in dB, `rfid` depends on the feature extractor."""

    rfid: float
    psnr: float
    images: int = Field(ge=1)
    clip_score: float | None = None


class Step(NamedTuple):
    """One step of the teacher's trajectory. `branch` is 0 unless the step is partial."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a step
    kind: Kind
    branch: int


class Schedule(Document):
    """The document. `format, model, solver, segments, timesteps, corrections` are its identity; the rest only describes it.

    `timesteps`, where there are any, are those of the computed steps, in their order, instead of the solver's own: re-aligned
    to what the steps reuse (as BudCache does, arXiv 2606.13496). `corrections`, one for each computed step, move the solver's
    numbers. Without either the identity is what it was before the field.
    """

    format: Literal[1] = FORMAT
    model: ModelRef
    solver: Solver
    segments: tuple[Segment, ...] = Field(min_length=1)
    timesteps: tuple[int, ...] | None = Field(default=None, exclude_if=lambda timesteps: timesteps is None)
    corrections: tuple[Correction, ...] | None = Field(default=None, exclude_if=lambda corrections: corrections is None)
    validated: Validated | None = None
    cost: Cost | None = None
    fidelity: Fidelity | None = None
    provenance: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _fits_the_trajectory(self) -> Self:
        steps, count = self.solver.teacher_steps, len(self.segments)
        if steps % count:
            raise ValueError(f"segments: their number ({count}) must divide teacher_steps ({steps})")
        for i, segment in enumerate(self.segments):
            if segment.partial and segment.partial[-1] >= self.length:
                raise ValueError(
                    f"segments.{i}.partial: offset {segment.partial[-1]} is past the segment's end; "
                    f"the limit is {self.length - 1}"
                )
        return self

    @model_validator(mode="after")
    def _timesteps_are_the_computed_steps(self) -> Self:
        if self.timesteps is None:
            return self
        if len(self.timesteps) != self.computed:
            message = f"timesteps: must be one for each of the {self.computed} computed steps, got {len(self.timesteps)}"
            raise ValueError(message)
        if list(self.timesteps) != sorted(set(self.timesteps), reverse=True) or self.timesteps[-1] < 0:
            raise ValueError(f"timesteps: must descend and not go below 0, got {list(self.timesteps)}")
        if self.solver.karras:
            raise ValueError("timesteps: with karras the noise levels decide; take one of them away")
        return self

    @model_validator(mode="after")
    def _a_correction_for_each_computed_step(self) -> Self:
        if self.corrections is not None and len(self.corrections) != self.computed:
            found = len(self.corrections)
            raise ValueError(f"corrections: must be one for each of the {self.computed} computed steps, got {found}")
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a document. `Unsupported` for another format, `InvalidInput` naming the first field at fault."""
        try:
            raw = json.loads(data)
            canonical(raw)  # NaN and lone surrogates can be read but never written back
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the schedule is not valid JSON: {error}", param="schedule") from error
        if not isinstance(raw, dict):
            raise InvalidInput(f"the schedule must be a JSON object, got {type(raw).__name__}", param="schedule")
        if raw.get("format", FORMAT) != FORMAT:
            raise Unsupported(f"format: this version reads {FORMAT}, got {raw['format']!r}", param="format")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            message, field = first_fault(error)
            raise InvalidInput(message, param=field) from error

    @property
    def length(self) -> int:
        """Steps in each segment."""
        return self.solver.teacher_steps // len(self.segments)

    @property
    def computed(self) -> int:
        """How many steps are full or partial."""
        return len(self.segments) + sum(len(segment.partial) for segment in self.segments)

    def steps(self) -> Iterator[Step]:
        """Every step of the teacher's trajectory, in the order of sampling."""
        for s, segment in enumerate(self.segments):
            for offset in range(self.length):
                index = s * self.length + offset
                if offset == 0:
                    yield Step(index, "full", 0)
                elif offset in segment.partial:
                    yield Step(index, "partial", segment.branch)
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


IDENTITY = {"format", "model", "solver", "segments", "timesteps", "corrections"}


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def teacher(model: ModelRef, solver: Solver) -> Schedule:
    """The unaccelerated model as a schedule: every step is full."""
    return Schedule(model=model, solver=solver, segments=(Segment(),) * solver.teacher_steps)


def first_fault(error: ValidationError) -> tuple[str, str]:
    """(message, dotted field) of the first fault; the validators above begin their text with the field's own name."""
    fault = error.errors(include_url=False)[0]
    place = [str(part) for part in fault["loc"]]
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        field, _, text = text.partition(": ")
        place.append(field)
    return f"{'.'.join(place)}: {text}", ".".join(place)
