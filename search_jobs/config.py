"""What a search job is told: one frozen document, kept beside its results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from engine.compile_choice import CompileChoice
from engine.guidance import MAX_SCALE, OFF
from engine.image_size import ImageSize
from registry.document import Document, Name, first_fault, misfit
from registry.errors import InvalidInput

TIERS = {"best": 1 / 3, "balanced": 1 / 5, "fast": 1 / 8, "draft": 1 / 12}
TEACHER_STEPS, FEWEST_STEPS = 50, 4
SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
MAX_SEED = 1_000_000
WORST = 1e30  # the loss of images that are not finite; a number, because infinity is no JSON
BUDGETS = (1 / 2, 1 / 3, 1 / 5, 1 / 8, 1 / 12)
Mean = Literal["geometric", "arithmetic"]
PACE = ("batch", "together", "share_mib", "compiled")  # settings that say how fast a job goes, not what it finds


class JobConfig(Document):
    """The job's settings. `tiers` maps a tier's name to the most it may cost, relative to the teacher.

    The search aims at the tiers' ceilings and at `budgets`, further costs that somebody wants to compare at.
    """

    model: str
    name: Name | None = Field(
        default=None, description="what schedules call the model; without it, its folder's name makes one"
    )
    prompts: str = Field(default="", description="a text file, one prompt a line; empty for an unconditional model")
    prompts_digest: str = Field(default="", description="SHA-256 of the prompts file: another text is another job")
    device: str = "cpu"
    dtype: str = "float32"
    features: str
    features_digest: str = Field(default="", description="SHA-256 of the features' files: other weights are another job")
    teacher_steps: int = Field(default=TEACHER_STEPS, ge=FEWEST_STEPS, le=900)
    guidance: float = Field(ge=OFF, le=MAX_SCALE)
    scales: tuple[float, ...] = Field(
        default=SCALES, max_length=32, description="guidance scales that what is chosen gets corrections for, beside `guidance`"
    )
    sizes: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="image sizes, WIDTHxHEIGHT: the search decides at the first one, and what is chosen gets figures at each; "
        "the model's own, where there are none",
    )
    screen: int = Field(default=4, ge=2, le=100_000, description="images by which most children are discarded")
    images: int = Field(default=12, ge=2, le=100_000, description="images that corrections are fitted on: one batch")
    select: int = Field(default=24, ge=2, le=100_000, description="images, other noise, that choose parents")
    finals: int = Field(default=32, ge=2, le=100_000, description="images that decide among finalists: other noise again")
    finalists: int = Field(default=3, ge=1, le=1000, description="of the search, for each budget")
    heldout: int = Field(default=48, ge=2, le=100_000, description="images of the final figures: other prompts, other noise")
    scaled: int = Field(default=12, ge=2, le=100_000, description="of the held-out images, those at each of `scales`")
    generations: int = Field(default=4, ge=0, le=10_000)
    population: int = Field(default=30, ge=1, le=10_000)
    share: float = Field(default=1 / 3, gt=0, le=1, description="of a generation that climbs from one rung to the next")
    max_segments: int = Field(default=24, ge=3, le=200)
    max_partial: int = Field(default=3, ge=0, le=100, description="partial steps in a segment, at most")
    offsets: Literal["free", "paper"] = Field(default="free", description="paper: partial steps directly after the full one")
    retime: bool = Field(default=True, description="whether the search moves timesteps off the solver's own grid")
    correct: bool = Field(default=True, description="whether schedules get corrections")
    extrapolate: bool = Field(default=True, description="whether corrections extrapolate deep features where they drift")
    mean: Mean = Field(default="geometric", description="of the images' squared distances to the teacher's: the loss")
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    batch: int | None = Field(default=None, ge=1, le=1024, description="images in a UNet call, at most")
    together: int | None = Field(default=None, ge=1, le=10_000, description="schedules that share UNet calls, at most")
    compiled: CompileChoice = Field(default="auto", description="torch.compile; auto: on GPUs")
    share_mib: int = Field(default=512, ge=0, le=1 << 20, description="memory for UNet calls that schedules have in common")
    tiers: dict[Name, float] = TIERS
    budgets: tuple[float, ...] = BUDGETS

    @model_validator(mode="after")
    def _costs(self) -> Self:
        least = 1 / self.teacher_steps
        ceilings: list[tuple[str, str | int, float]] = [("tiers", name, ceiling) for name, ceiling in self.tiers.items()]
        ceilings += [("budgets", i, ceiling) for i, ceiling in enumerate(self.budgets)]
        for *place, ceiling in ceilings:
            if not 0 < ceiling <= 1:
                raise misfit(f"a ceiling is a fraction of the teacher's cost in (0, 1], got {ceiling}", *place)
            if ceiling < least:
                limit = f"one of the teacher's {self.teacher_steps} steps costs {least:.4g}"
                raise misfit(f"nothing is as cheap as {ceiling:.4g}: {limit}", *place)
        if not self.tiers and not self.budgets:
            raise misfit("there must be a tier or a budget to aim at", "tiers")
        return self

    @model_validator(mode="after")
    def _scales(self) -> Self:
        for i, scale in enumerate(self.scales):
            if not OFF <= scale <= MAX_SCALE:
                raise misfit(f"must be from {OFF:g} to {MAX_SCALE:g}, got {scale:g}", "scales", i)
        return self

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for i, size in enumerate(self.sizes):
            try:
                ImageSize.parse(size)
            except InvalidInput as error:
                raise misfit(error.text, "sizes", i) from error
        if len(set(self.sizes)) < len(self.sizes):
            raise misfit("each size is said once", "sizes")
        return self

    @model_validator(mode="after")
    def _samples(self) -> Self:
        if self.screen > self.images:
            raise misfit(f"the first of the images; the limit is {self.images}, got {self.screen}", "screen")
        return self

    @property
    def other_scales(self) -> list[float]:
        """The guidance scales beside the search's own that schedules get corrections for, the smallest first.

        None without guidance, or without corrections.
        """
        return sorted({*self.scales} - {self.guidance}) if self.correct and self.guidance > OFF else []

    @property
    def size(self) -> ImageSize | None:
        """At which the search decides; None is the model's own."""
        return ImageSize.parse(self.sizes[0]) if self.sizes else None

    @property
    def other_sizes(self) -> list[ImageSize]:
        """At which what is chosen gets figures as well."""
        return [ImageSize.parse(size) for size in self.sizes[1:]]

    @property
    def ceilings(self) -> list[float]:
        """All costs that the search aims at, the tiers' and the further budgets, the smallest first."""
        return sorted({*self.tiers.values(), *self.budgets})

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Check the settings. Raises `InvalidInput` naming the first field at fault."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            fault = first_fault(error)
            raise InvalidInput(fault.text, param=fault.param) from error

    def as_kept(self) -> Self:
        """What these settings mean in a run folder: before there were extrapolations, or geometric means, there were none."""
        earlier = {"extrapolate": False, "mean": "arithmetic"}
        return self.model_copy(update={name: value for name, value in earlier.items() if name not in self.model_fields_set})

    def refuse_changed_files(self) -> None:
        """Raises `InvalidInput` where the prompts or the features are not what they were when the search began."""
        for name, path, digest in (
            ("prompts", self.prompts, self.prompts_digest),
            ("features", self.features, self.features_digest),
        ):
            if digest and digest_of(Path(path)) != digest:  # none where no file was named
                raise InvalidInput(f"{path} is not what it was when the search began", param=name)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts, one a line, each once. Raises `InvalidInput` when there are too few to split between search and report."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInput(f"{file} is not a file", param="prompts")
    try:
        text = file.read_text("utf-8-sig")  # without the mark that some editors begin a file with
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 text: {error}", param="prompts") from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) < 2:
        raise InvalidInput(f"{file} must hold at least 2 different prompts, got {len(lines)}", param="prompts")
    return lines


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; empty where nothing is, which its reader says."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else []
    return hashlib.sha256(repr([(file.name, digest_of(file)) for file in files]).encode()).hexdigest() if files else ""
