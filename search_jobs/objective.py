"""What a schedule is worth: its images against the teacher's, from the same prompts and the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.condition import Condition
from engine.models import Model
from engine.program import Program
from engine.sampler import generate
from registry.errors import InvalidInput
from registry.schedule import Schedule, teacher
from search_jobs.features import Clip, clip_score, frechet_distance

WORST = 1e30  # the loss of images that are not finite; a number, because infinity is no JSON


@dataclass(frozen=True)
class Measure:
    """One schedule, measured. `loss` is what the search minimises; the others are reported.

    loss: mean squared feature distance to the teacher's image of the same noise; paired, so it ranks schedules reliably with
    far fewer images than a Fréchet distance. rfid: Fréchet distance between the candidate's and the teacher's features. psnr:
    dB, of the mean squared pixel error over all images. clip_score: 100 · cosine with the prompt. macs: one image, guidance
    rows included. cost: macs relative to the teacher's.
    """

    cost: float
    macs: int
    loss: float
    rfid: float
    psnr: float
    clip_score: float
    images: int

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """The images an objective looks at: one prompt and one seed each. Search and report use disjoint samples."""

    prompts: Sequence[str]
    seeds: Sequence[int]

    @classmethod
    def draw(cls, prompts: Sequence[str], count: int, seed: int) -> Sample:
        """`count` images over the prompts in turn, with seeds that no other `seed` shares."""
        if not prompts:
            return cls([], [])
        order = np.random.default_rng(seed).permutation(len(prompts))
        return cls([prompts[order[i % len(prompts)]] for i in range(count)], [seed * 1_000_000 + i for i in range(count)])


class Objective:
    """Generates with the plain sampler in batches; the teacher's images are computed once and kept in `cache`."""

    def __init__(
        self,
        model: Model,
        clip: Clip,
        sample: Sample,
        teacher_steps: int = 50,
        guidance: float = 3.0,
        batch: int = 8,
        cache: Path | None = None,
        samples: Path | None = None,
        progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        """`batch` images per UNet call (two rows each with guidance) bounds memory; `progress` hears of finished images.

        The teacher's images are kept in the file `cache`, the first few images of every schedule in the folder `samples`.
        """
        self.model, self.clip, self.sample = model, clip, sample
        self.guidance, self.batch, self.samples, self.progress = guidance, batch, samples, progress
        self.rows = 2 if guidance > 1 else 1
        self.teacher = model.compile(teacher(model.ref, model.solver("ddim", teacher_steps)))
        self.noise = torch.stack([model.noise(seed) for seed in sample.seeds])
        prompts = list(sample.prompts)
        self.condition = Condition.cat([model.encode(prompts[i : i + batch]) for i in range(0, len(prompts), batch)])
        self.negative = model.negative([""]) if self.rows == 2 else None
        self.texts = clip.texts(sample.prompts)
        self.reference = self._teacher_images(cache)
        self.features = clip.images(self.reference)
        if not np.isfinite(self.features).all():
            raise InvalidInput("dtype: the teacher's images are not finite; use bfloat16 or float32", param="dtype")

    def images(self, program: Program) -> Tensor:
        """The sample's images under one program, (n, 3, H, W) in [0, 1]."""
        batches = []
        for start in range(0, len(self.noise), self.batch):
            noise, condition = self.noise[start : start + self.batch], self.condition[start : start + self.batch]
            negative = None if self.negative is None else self.negative.expand(len(noise))
            latents = generate(self.model.anatomy, program, noise, condition, negative, self.guidance)
            batches.append(self.model.decode(latents))
            self.progress(len(noise))
        return torch.cat(batches)

    def evaluate(self, schedule: Schedule) -> Measure:
        """Measure one schedule."""
        program = self.model.compile(schedule)
        images = self.images(program)
        if self.samples is not None:
            save_samples(self.samples / f"{schedule.digest}.npy", images)
        features = self.clip.images(images)
        if not np.isfinite(features).all():  # a candidate may overflow in half precision: it loses, the search goes on
            return Measure(self.relative(program), self._macs(program), WORST, WORST, 0.0, 0.0, len(images))
        error = functional.mse_loss(images, self.reference).item()
        return Measure(
            cost=self.relative(program),
            macs=self._macs(program),
            loss=float(((features - self.features) ** 2).sum(1).mean()),
            rfid=frechet_distance(features, self.features),
            psnr=float(-10 * np.log10(max(error, 1e-10))),
            clip_score=clip_score(features, self.texts),
            images=len(images),
        )

    def _macs(self, program: Program) -> int:
        return self.model.macs.of_program(program, self.rows)

    def relative(self, program: Program) -> float:
        """MACs relative to the teacher's."""
        return self.model.macs.relative(program, self.teacher)

    def _teacher_images(self, cache: Path | None) -> Tensor:
        if cache is not None and cache.is_file():
            stored = torch.load(cache, weights_only=True)
            if stored["key"] == self._key():
                self.progress(len(self.noise))
                return torch.as_tensor(stored["images"])
        images = self.images(self.teacher)
        if cache is not None:
            partial = cache.with_suffix(".tmp")  # a kill leaves the old file or the new one
            torch.save({"key": self._key(), "images": images}, partial)
            partial.replace(cache)
        return images

    def _key(self) -> str:
        """What the teacher's images depend on."""
        sample = (list(self.sample.prompts), list(self.sample.seeds))
        return repr((self.teacher.schedule.digest, self.guidance, *sample))


def save_samples(path: Path, images: Tensor, count: int = 8) -> None:
    """The first `count` images (n, 3, H, W) in [0, 1], as 8-bit (count, H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, (images[:count] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
