"""What a search job is told: one frozen document, kept beside its results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from registry.errors import InvalidInput
from registry.schedule import Document, Name, first_fault

TIERS = {"best": 0.30, "balanced": 0.20, "fast": 0.13, "draft": 0.09}


class JobConfig(Document):
    """The job's settings. `tiers` maps a tier's name to the most it may cost, relative to the teacher."""

    model: str
    prompts: str
    prompts_digest: str = Field(default="", description="SHA-256 of the prompts file: another text is another job")
    device: str = "cpu"
    dtype: str = "float32"
    features: str
    teacher_steps: int = Field(default=50, ge=4, le=900)
    guidance: float = Field(default=3.0, ge=1, le=30)
    images: int = Field(default=12, ge=2, le=100_000, description="images a candidate is judged by in the search")
    finals: int = Field(default=16, ge=2, le=100_000, description="images that decide among a tier's finalists: other noise")
    finalists: int = Field(default=2, ge=1, le=1000, description="of the search, and as many baselines, for each tier")
    heldout: int = Field(default=24, ge=2, le=100_000, description="images of the final figures: other prompts, other noise")
    generations: int = Field(default=4, ge=0, le=10_000)
    population: int = Field(default=8, ge=1, le=10_000)
    max_segments: int = Field(default=16, ge=3, le=200)
    max_partial: int = Field(default=3, ge=0, le=100, description="partial steps in a segment, at most")
    retime: bool = Field(default=True, description="whether the search moves timesteps off the solver's own grid")
    seed: int = Field(default=0, ge=0, le=1_000_000)
    batch: int = Field(default=8, ge=1, le=1024, description="images generated at once: bounds memory")
    tiers: dict[Name, float] = TIERS

    @model_validator(mode="after")
    def _tiers(self) -> Self:
        for name, ceiling in self.tiers.items():
            if not 0 < ceiling <= 1:
                raise ValueError(f"tiers.{name}: a ceiling is a fraction of the teacher's cost in (0, 1], got {ceiling}")
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Check the settings. Raises `InvalidInput` naming the first field at fault."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            message, field = first_fault(error)
            raise InvalidInput(message, param=field) from error


def read_prompts(path: str | Path) -> list[str]:
    """The prompts, one a line. Raises `InvalidInput` when there are too few to split between search and report."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInput(f"prompts: {file} is not a file", param="prompts")
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if len(lines) < 2:
        raise InvalidInput(f"prompts: {file} must hold at least 2 prompts, got {len(lines)}", param="prompts")
    return lines


def digest_of(prompts: Path) -> str:
    """SHA-256 of the prompts file; empty where there is none, which `read_prompts` says better."""
    return hashlib.sha256(prompts.read_bytes()).hexdigest() if prompts.is_file() else ""
