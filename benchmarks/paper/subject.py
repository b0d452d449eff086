"""What the table is made of: a model with its prompts, features and real images, and how much is measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.guidance import meant
from engine.loading import usual
from registry.errors import NotFound

SPEEDUPS = (2.0, 2.6, 5.1, 8.0, 12.0)  # 2.6 and 5.1 are what the paper says of LDM-4-G and Stable Diffusion v1.5
WITH_REAL, WITHOUT_REAL = 5000, 1000  # images of a full table


@dataclass(frozen=True)
class Subject:
    """A model of the table. prompts: a file of prompts or classes, none of an unconditional model. real: a folder of pictures,
    or a file of their features' mean and root of covariance; None where no real images are at hand."""

    name: str
    model: Path
    prompts: Path | None
    features: Path
    real: Path | None
    guidance: float

    @classmethod
    def of(cls, model: Path, real: Path | None = None, features: Path | None = None, guidance: float | None = None) -> Subject:
        """The subject that a model's folder makes, with what it keeps beside its weights.

        Raises `NotFound` for a folder that holds no model, or no features where none are named.
        """
        if not (model / "model_index.json").is_file():
            raise NotFound(f"{model} holds no model (no model_index.json)", param="model")
        looks = features or next((folder for name in ("features", "clip") if (folder := model / name).is_dir()), None)
        if looks is None:
            raise NotFound(f"{model} holds neither features nor clip: name a folder", param="features")
        prompts = model / "prompts.txt"
        own_real = looks / "real.npz"
        return cls(
            model.resolve().name,
            model,
            prompts if prompts.is_file() else None,
            looks,
            real or (own_real if own_real.is_file() else None),
            usual(model).guidance if guidance is None else meant(guidance),
        )


@dataclass(frozen=True)
class Effort:
    """How much is measured. images: that figures are of; None for as many as the real images deserve. screen, choose: that
    hand-set schedules are chosen by, few at first and more of the best, at most. every: intervals of uniform caching. part:
    images that are measured and kept at once. search: settings of the searches.
    """

    name: str
    images: int | None = None
    seeds: int = 3
    teacher_steps: int = 50
    screen: int = 8
    choose: int = 48
    every: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 10)
    part: int = 100
    search: dict[str, Any] = field(default_factory=lambda: {"generations": 6, "population": 30})

    def choosing(self, subject: Subject) -> int:
        """The number of images that decide among the best hand-set schedules: a quarter as many as figures are of, at most."""
        return max(2, min(self.choose, self.images_of(subject) // 4))

    def images_of(self, subject: Subject) -> int:
        """The number of images of a subject's figures."""
        return self.images or (WITH_REAL if subject.real else WITHOUT_REAL)


FULL = Effort("full")
QUICK = Effort(
    "quick",
    images=48,
    seeds=1,
    screen=2,
    choose=8,
    every=(2, 3),
    part=24,
    search={"generations": 2, "population": 15, "screen": 2, "images": 8, "select": 12, "finals": 8},
)
