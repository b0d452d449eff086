"""A recipe's images of a sample, part by part; what is measured of one is on disk before the next begins."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.forecast.denoisers import Forecasting
from benchmarks.forecast.forecasts import Recipe
from engine.images import levels
from engine.model import Model
from engine.sampler import generate
from evaluation import Extractor, Features
from registry.files import replace_file
from registry.schedule import Schedule
from search_jobs.measurement import paired_loss
from search_jobs.objective import Sample

SHOWN = 4  # images of a sample that are kept as such, for pictures


class MeasuredImages(NamedTuple):
    """What is measured of n images: features (n, d), mean squared pixel errors to the teacher's (n,), scores (n,).

    score: 100 times the cosine of an image with its prompt, or 100 where a classifier takes it for its class, else 0; NaN
    where features know neither. shown: the first few images, 8-bit (k, H, W, 3).
    """

    features: Features
    errors: Features
    scores: Features
    shown: NDArray[np.uint8]

    @property
    def finite(self) -> bool:
        """Whether all images are."""
        return bool(np.isfinite(self.features).all() and np.isfinite(self.errors).all())


@dataclass(frozen=True)
class ImageStore:
    """Makes and measures images of one model in one set of features, and keeps the measurements below `folder`.

    A file is named by all that it depends on: weights, features, teacher, guidance, prompts, seeds, and the recipe. made: is
    told of every part that was not on disk.
    """

    model: Model
    extractor: Extractor
    teacher: Schedule
    guidance: float
    folder: Path
    part: int
    batch: int = 8
    made: Callable[[int], None] = lambda images: None

    def measured(self, recipe: Recipe, sample: Sample) -> MeasuredImages:
        """What is measured of a recipe's images of a sample: read where it is there, else made, a part at a time."""
        count = len(sample.seeds)
        ends = [slice(start, min(start + self.part, count)) for start in range(0, count, self.part)]
        parts = [self._part(recipe, Sample(sample.prompts[part], sample.seeds[part])) for part in ends]
        return MeasuredImages(*(np.concatenate(column) for column in zip(*parts, strict=True)))._replace(shown=parts[0].shown)

    def loss(self, recipe: Recipe, sample: Sample) -> float:
        """As a search ranks: distances of features to the teacher's images of the same noise."""
        own, teacher = self.measured(recipe, sample), self.measured(Recipe(self.teacher), sample)
        return paired_loss(own.features, teacher.features) if own.finite else np.inf

    def _part(self, recipe: Recipe, part: Sample) -> MeasuredImages:
        place = self.folder / self.key(part)
        file = place / f"{recipe.digest}.npz"
        if not file.is_file():
            teachers = self._teachers(place, part)
            images = teachers if recipe.digest == self.teacher.digest else self._images(recipe, part)
            write_arrays(file, self._measure(images, part, teachers)._asdict())
            self.made(len(part.seeds))
        with np.load(file, allow_pickle=False) as kept:
            return MeasuredImages(*(kept[name] for name in MeasuredImages._fields))

    def _teachers(self, place: Path, part: Sample) -> Tensor:
        """The teacher's images of a part, (n, 3, H, W): in half precision, whose rounding is 80 dB below them."""
        file = place / "teacher-images.npz"
        if not file.is_file():
            write_arrays(file, {"images": self._images(Recipe(self.teacher), part).half().numpy()})
        with np.load(file, allow_pickle=False) as kept:
            return torch.from_numpy(kept["images"]).float()

    def _measure(self, images: Tensor, part: Sample, teachers: Tensor) -> MeasuredImages:
        features = self.extractor.images(images)
        errors = ((images - teachers) ** 2).flatten(1).mean(1).numpy().astype(np.float64)
        return MeasuredImages(
            features, errors, self._scores(images, features, part), levels(images[:SHOWN].nan_to_num()).numpy()
        )

    def _scores(self, images: Tensor, features: Features, part: Sample) -> Features:
        recognised, texts = self.extractor.recognised(images, part.prompts), self.extractor.texts(part.prompts)
        if recognised is not None:
            return 100 * recognised.astype(np.float64)
        if texts is None:
            return np.full(len(images), np.nan)
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(texts, axis=1)
        cosines: Features = 100 * (features * texts).sum(1) / lengths
        return cosines

    def _images(self, recipe: Recipe, part: Sample) -> Tensor:
        """Images (n, 3, H, W) in [0, 1]."""
        program, images, network = self.model.compile(recipe.schedule), [], self.model.network
        if recipe.forecast is not None:
            network = Forecasting(network, recipe.forecast)
        for start in range(0, len(part.seeds), self.batch):
            seeds, prompts = part.seeds[start : start + self.batch], part.prompts[start : start + self.batch]
            noise = torch.stack([self.model.noise(seed) for seed in seeds])
            negative = self.model.negative([""]).expand(len(seeds)) if self.model.rows(self.guidance) == 2 else None
            latents = generate(network, program, noise, self.model.encode(prompts, self.guidance), negative, self.guidance)
            images.append(self.model.decode(latents))
        return torch.cat(images)

    def key(self, part: Sample) -> str:
        """A name for all that a part's measurements depend on, the recipe apart."""
        parts: tuple[object, ...] = (self.model.ref.fingerprint, self.extractor.name, self.teacher.digest, self.guidance)
        if self.model.dtype != torch.float32:
            parts = (*parts, str(self.model.dtype))
        return hashlib.sha256(repr((*parts, list(part.prompts), list(part.seeds))).encode()).hexdigest()[:16]


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to one file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its own options have other types
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, buffer.getvalue())
