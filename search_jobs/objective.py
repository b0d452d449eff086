"""What a schedule is worth: its images against the teacher's, from the same prompts and the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.condition import Condition
from engine.fresh_noise import Fresh, stacked
from engine.image_size import ImageSize
from engine.images import finite, levels
from engine.model import Model
from engine.program import Program, path_of
from engine.prompts import ClassPrompts
from evaluation import Extractor, Features, clip_score, frechet_distance, psnr
from evaluation.distance import Gaussian
from evaluation.paired import resampled
from registry.errors import InvalidInput
from registry.schedule import STOCHASTIC, Schedule, SolverName
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.config import WORST, Mean
from search_jobs.measurement import Measurement, intervals, paired_loss, rounded
from search_jobs.memory import memory_of
from search_jobs.path import walk
from search_jobs.pieces import Pieces, UNetInPieces, usual_extent
from search_jobs.prefix_caching import PrefixCachingSampler, Sampled
from search_jobs.schedule_walk import MacsSpent
from search_jobs.teacher_outputs import TeacherOutputs


class Evaluation(NamedTuple):
    """An evaluated schedule: with its corrections if they were fitted, its measure, and what it took."""

    schedule: Schedule
    measurement: Measurement
    spent: MacsSpent


@dataclass(frozen=True)
class Sample:
    """The images that an objective looks at: one prompt and one noise seed each. Every stage has a sample of its own."""

    prompts: Sequence[str]
    seeds: Sequence[int]

    @classmethod
    def draw(cls, prompts: Sequence[str], count: int, seed: int) -> Sample:
        """`count` images over the prompts in turn, with seeds that no other `seed` shares."""
        if not prompts:
            return cls([], [])
        order = np.random.default_rng(seed).permutation(len(prompts))
        return cls([prompts[order[i % len(prompts)]] for i in range(count)], [seed * 1_000_000 + i for i in range(count)])

    def first(self, count: int) -> Sample:
        """The first `count` images."""
        return Sample(self.prompts[:count], self.seeds[:count])


class Objective:
    """Evaluates schedules on one sample, against one teacher, whose outputs are computed once and kept in `cache`."""

    def __init__(
        self,
        model: Model,
        extractor: Extractor,
        sample: Sample,
        teacher_steps: int = 50,
        guidance: float = 3.0,
        batch: int | None = None,
        together: int | None = None,
        fitting: bool = False,
        extrapolating: bool = False,
        bootstrap: bool = False,
        memory: int = 0,
        real: Gaussian | None = None,
        cache: Path | None = None,
        samples: Path | None = None,
        progress: Callable[[int], None] = lambda images: None,
        pieces: Pieces | None = None,
        size: ImageSize | None = None,
        mean: Mean = "geometric",
    ) -> None:
        """A UNet call has at most `batch` images (two rows each with guidance), of at most `together` schedules.

        On a GPU its memory is a limit too, which `pieces` finds; on the CPU the defaults are 8 images of one schedule.
        fitting: corrections can be fitted here, on all images of the sample, which therefore are one batch; extrapolating: with
        extrapolations. memory: bytes for the UNet calls that other schedules may share, all batches together. real: of features
        of real images. The first few images of every schedule are kept in the folder `samples`. `progress` is told of the
        teacher's images. size: of the images; None is the model's own. mean: of squared distances, which is the loss.
        """
        self.model, self.extractor, self.sample, self.guidance = model, extractor, sample, guidance
        self.samples, self.bootstrap, self.real, self.progress = samples, bootstrap, real, progress
        self.extrapolating, self.mean = extrapolating, mean
        usual = usual_extent(model.device)
        self.batch = max(len(sample.seeds) if fitting else 0, batch or usual.batch)
        self.together, self.pieces = together or usual.together, pieces or Pieces(memory_of(model.device))
        self.rows, self.size = model.rows(guidance), size
        self.unet = UNetInPieces(model.network, self.pieces, self.batch * self.rows)
        self.teacher = model.compile(model.teacher(teacher_steps), size)
        self.fresh = stacked([model.noises(seed, size) for seed in sample.seeds])
        self.noise = self.fresh(0)
        prompts = list(sample.prompts)
        self.condition = Condition.cat([model.encode(prompts[part], guidance, size) for part in self._parts()])
        self.negative = model.negative([""], size) if self.rows == 2 else None
        self.teacher_outputs = self._teacher_outputs(fitting, cache)
        self.features = self._features(self.teacher_outputs.images)
        self.texts = None if isinstance(model.prompts, ClassPrompts) else extractor.texts(sample.prompts)
        if not np.isfinite(self.features).all():
            raise InvalidInput("the features of the teacher's images are not finite", param="features")
        self.samplers = [self._sampler(part, memory) for part in self._parts()]

    def evaluate(self, schedule: Schedule, fitting: bool = False) -> Evaluation:
        """Generate the sample's images with a schedule, as it is or with corrections fitted here, and measure them."""
        return next(self.evaluate_all([schedule], fitting))

    def evaluate_all(self, schedules: Sequence[Schedule], fitting: bool = False) -> Iterator[Evaluation]:
        """As `evaluate`, with as many schedules at once as the memory holds; in their order."""
        each = max(sampler.bytes_each for sampler in self.samplers)

        def run(part: slice) -> list[tuple[Sampled, ...]]:
            return list(zip(*(sampler.run(schedules[part], fitting) for sampler in self.samplers), strict=True))

        for group in self.pieces.run("schedules", len(schedules), self.together, run, each):
            yield from (self._evaluation(parts) for parts in group)

    def _evaluation(self, parts: Sequence[Sampled]) -> Evaluation:
        """What a schedule is worth, from what it makes of each of the batches."""
        schedule, images = parts[0].schedule, self._decoded(torch.cat([part.latents for part in parts]))
        if self.samples is not None and finite(images).all():
            save_samples(self.samples / f"{schedule.digest}.npy", images)
        spent = MacsSpent(sum(part.spent.run for part in parts), sum(part.spent.shared for part in parts))
        return Evaluation(schedule, self.measure(self.model.compile(schedule, self.size), images), spent)

    def measure(self, program: Program, images: Tensor) -> Measurement:
        """The figures of a program's images (n, 3, H, W) of this sample."""
        return self.measure_images(images, self.relative(program), self._macs(program))

    def measure_images(self, images: Tensor, cost: float, macs: int) -> Measurement:
        """The figures of images (n, 3, H, W) of this sample, whoever made them, each at so many MACs and this relative cost."""
        features, teachers = self._features(images), self.features
        if not (finite(images).all() and np.isfinite(features).all()):  # it overflows: it loses, the search goes on
            return Measurement(cost, macs, WORST, WORST, 0.0, None, len(images))
        errors = ((images - self.teacher_outputs.images) ** 2).flatten(1).mean(1).numpy().astype(np.float64)
        recognised = self.extractor.recognised(images, self.sample.prompts)

        def figures(chosen: NDArray[np.int64]) -> dict[str, float]:
            by_name = {
                "loss": paired_loss(features[chosen], teachers[chosen], self.mean),
                "rfid": frechet_distance(features[chosen], teachers[chosen]),
                "psnr": psnr(errors[chosen].mean()),
            }
            if self.texts is not None:
                by_name["clip_score"] = clip_score(features[chosen], self.texts[chosen])
            if recognised is not None:
                by_name["accuracy"] = float(recognised[chosen].mean())
            if self.real is not None:
                by_name["to_real"] = frechet_distance(features[chosen], self.real)
            return by_name

        whole = figures(np.arange(len(images)))
        drawn = resampled(figures, len(images)) if self.bootstrap else None
        return Measurement(
            cost=cost,
            macs=macs,
            loss=whole["loss"],
            rfid=whole["rfid"],
            psnr=whole["psnr"],
            clip_score=whole.get("clip_score"),
            images=len(images),
            intervals=intervals(drawn) if drawn else None,
            to_real=whole.get("to_real"),
            resampled=rounded(drawn) if drawn else None,
            accuracy=whole.get("accuracy"),
        )

    def best_timesteps(self, solver: SolverName | None = None) -> BestTimesteps | None:
        """The best timesteps along the teacher's path, for corrected steps or a solver's own.

        None where no path is kept, or it is a stochastic solver's, which no step can land on.
        """
        path, levels = self.teacher_outputs.path, self.teacher.levels
        if path is None or self.teacher.schedule.solver.name in STOCHASTIC:
            return None
        start = self.teacher.start * self.noise
        return BestTimesteps.of(path, path_of(self.teacher.schedule, levels), start, levels, solver)

    @property
    def teacher_macs(self) -> int:
        """MACs of the teacher's images of this sample, guidance rows included; no evaluation counts them."""
        return len(self.noise) * self._macs(self.teacher)

    def relative(self, program: Program) -> float:
        """A program's MACs relative to the teacher's."""
        return self.model.macs_at(self.size).relative(program, self.teacher)

    def _macs(self, program: Program) -> int:
        return self.model.macs_at(self.size).of_program(program, self.rows)

    def _parts(self) -> Iterator[slice]:
        """The sample in batches."""
        count = len(self.sample.seeds)
        return (slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch))

    def _inputs(self, part: slice) -> tuple[Tensor, Condition, Condition | None, float]:
        """Noise, condition, negative and guidance of a batch."""
        noise = self.noise[part]
        negative = None if self.negative is None else self.negative.expand(len(noise))
        return noise, self.condition[part], negative, self.guidance

    def _fresh(self, part: slice) -> Fresh:
        """The noises of a batch by place, which stochastic solvers add."""
        return lambda place: self.fresh(place)[part]

    def _sampler(self, part: slice, memory: int) -> PrefixCachingSampler:
        memory_of_part, fresh = memory // len(list(self._parts())), self._fresh(part)
        given, path = self._inputs(part), self.teacher_outputs.path
        return PrefixCachingSampler(self.model, self.unet, *given, path, memory_of_part, self.extrapolating, fresh)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W)."""
        return torch.cat(
            list(self.pieces.run("images", len(latents), self.batch, lambda part: self.model.decode(latents[part])))
        )

    def _features(self, images: Tensor) -> Features:
        """Images (n, 3, H, W) to features (n, d)."""
        count = len(images)
        return np.concatenate(
            list(self.pieces.run("images for features", count, count, lambda part: self.extractor.images(images[part])))
        )

    def _teacher_outputs(self, fitting: bool, cache: Path | None) -> TeacherOutputs:
        """The teacher's outputs for the sample: from the file, or computed and kept there."""
        what = (self.teacher.schedule.digest, self.guidance, list(self.sample.prompts), list(self.sample.seeds))
        key = repr(what if self.size is None else (*what, str(self.size)))
        stored = None if cache is None else TeacherOutputs.read(cache, key, self.model.device)
        if stored is not None and finite(stored.images).all() and (stored.path is not None or not fitting):
            self.progress(len(self.noise))
            return stored
        points, images, path = path_of(self.teacher.schedule, self.teacher.levels), [], None
        for part in self._parts():
            path = walk(self.unet, self.teacher, points, *self._inputs(part), self._fresh(part))
            images.append(self._decoded(path.end))
            self._refuse_ruined(part, images[-1], path.end)
            self.progress(len(images[-1]))
        outputs = TeacherOutputs(torch.cat(images), path if fitting else None)
        if cache is not None:
            outputs.write(cache, key)
        return outputs

    def _refuse_ruined(self, part: slice, images: Tensor, latents: Tensor) -> None:
        """Raises `InvalidInput` naming the first of the teacher's images of a batch that is not finite."""
        for i in torch.nonzero(~finite(images)).flatten().tolist():
            where = part.start + i
            which = f"the teacher's image of prompt {self.sample.prompts[where]!r} and seed {self.sample.seeds[where]}"
            if latents[i].isfinite().all():
                raise InvalidInput(f"{which} is not finite, decoded in float32 either", param="model")
            raise InvalidInput(f"{which} is not finite; use bfloat16 or float32", param="dtype")


def save_samples(path: Path, images: Tensor, count: int = 8) -> None:
    """The first `count` images (n, 3, H, W) in [0, 1], as 8-bit (count, H, W, 3). They must be finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, levels(images[:count]).numpy())
