"""What is measured, on the bundled model: the teacher is its own equal, and its outputs are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import model_folders
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from engine.decoders import Decoder
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from evaluation import Extractor, Features, extractor
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from search_jobs import objective as module
from search_jobs.config import WORST, JobConfig
from search_jobs.job import Job
from search_jobs.measurement import NONE
from search_jobs.objective import Objective, Sample
from search_jobs.progress import Progress

SAMPLE = Sample.draw(["red heart", "cat face", "tomato"], 5, 1)
CLIP = "models/emoji64/clip"


def objective(model: Model, cache: Path | None = None, **options: object) -> Objective:
    return Objective(model, extractor(CLIP), SAMPLE, teacher_steps=8, batch=2, cache=cache, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def judge(model: Model) -> Objective:
    return objective(model, bootstrap=True)


def coarse(model: Model) -> Schedule:
    return Schedule(model=model.ref, solver=model.solver("ddim", 8), segments=(Segment(partial=(1,), branch=2),) * 2)


def test_the_teacher_is_its_own_equal(judge: Objective) -> None:
    _, measure, spent = judge.evaluate(judge.teacher.schedule)
    assert spent.run == judge.teacher_macs
    assert measure.cost == 1
    assert measure.images == 5
    apart = ((judge.features - judge.features.mean(0)) ** 2).sum(1).mean()
    assert measure.loss == pytest.approx(NONE * apart), "no distance counts as less"
    assert measure.rfid < 1e-6
    assert measure.psnr > 60


def test_a_coarse_schedule_is_worse_and_its_intervals_lie_around_its_figures(model: Model, judge: Objective) -> None:
    result = judge.evaluate(coarse(model))
    measure = result.measurement
    assert measure.macs == 2 * model.macs.of_program(model.compile(coarse(model)), 1)
    assert measure.psnr < 50
    assert measure.clip_score is not None
    assert measure.intervals is not None
    for name in ("loss", "rfid", "psnr", "clip_score"):
        low, high = measure.intervals[name]
        assert low < getattr(measure, name) < high
    assert measure.intervals["rfid"][0] >= 0
    assert result.spent.run == 5 * measure.macs


def test_at_another_size_images_and_macs_are_of_it(model: Model) -> None:
    size = ImageSize(32, 64)
    small = Objective(model, extractor(CLIP), SAMPLE.first(2), teacher_steps=4, size=size)
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(partial=(1,), branch=2),) * 2)
    program, result = model.compile(schedule), small.evaluate(schedule)
    assert small.teacher_outputs.images.shape == (2, 3, 32, 64)
    assert result.measurement.macs == model.macs_at(size).of_program(program, 2) != model.macs.of_program(program, 2)
    assert result.spent.run == 2 * result.measurement.macs


def test_images_are_measured_against_the_teachers_image_of_the_same_noise(model: Model, judge: Objective) -> None:
    program, images = model.compile(coarse(model)), judge.teacher_outputs.images
    moved = judge.measure(program, images.roll(1, dims=0))
    assert moved.rfid < 1e-6, "the same set of images"
    assert moved.loss > 0.1, "but not paired"


def test_images_that_are_no_numbers_lose(model: Model, judge: Objective) -> None:
    broken = torch.full_like(judge.teacher_outputs.images, float("nan"))
    assert judge.measure(model.compile(coarse(model)), broken).loss == WORST


def test_an_unconditional_sample_has_no_clip_score(model: Model) -> None:
    silent = Objective(model, extractor(CLIP), Sample.draw([""], 2, 1), teacher_steps=4, guidance=1.0, bootstrap=True)
    measurement = silent.evaluate(silent.teacher.schedule).measurement
    assert measurement.clip_score is None
    assert measurement.accuracy is None


def test_accuracy_is_the_share_of_the_images_that_the_extractor_recognises(model: Model) -> None:
    class Reader(Extractor):
        name = "reader"

        def images(self, images: Tensor) -> Features:
            return images.mean((2, 3)).double().numpy()

        def texts(self, prompts: Sequence[str]) -> None:
            return None

        def recognised(self, images: Tensor, prompts: Sequence[str]) -> NDArray[np.bool_]:
            return np.array([prompt == "tomato" for prompt in prompts])

    sample = Sample(["tomato", "red heart", "tomato", "tomato"], [0, 1, 2, 3])
    reading = Objective(model, Reader(), sample, teacher_steps=4, guidance=1.0, batch=2)
    assert reading.measure(reading.teacher, reading.teacher_outputs.images).accuracy == 0.75


def test_the_teachers_outputs_come_from_the_file_the_second_time(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = objective(model, tmp_path / "teacher.pt", fitting=True)
    fitted = first.evaluate(coarse(model), fitting=True)
    with monkeypatch.context() as patched:
        patched.setattr(module, "walk", None)  # calling it would fail
        again = objective(model, tmp_path / "teacher.pt", fitting=True)
    assert torch.equal(again.teacher_outputs.images, first.teacher_outputs.images)
    assert again.evaluate(coarse(model), fitting=True) == fitted
    assert [file.name for file in tmp_path.iterdir()] == ["teacher.pt"]
    other = Objective(model, extractor(CLIP), SAMPLE.first(2), teacher_steps=8, cache=tmp_path / "teacher.pt")
    assert len(other.teacher_outputs.images) == 2, "a file of another sample is not this one's"


def test_a_model_that_overflows_says_so(model: Model) -> None:
    class Overflowing:
        name = "nan"

        def images(self, images: torch.Tensor) -> np.ndarray:
            return np.full((len(images), 3), np.nan)

        def texts(self, prompts: object) -> None:
            return None

    with pytest.raises(InvalidInput, match="the features of the teacher's images are not finite"):
        Objective(replace(model), Overflowing(), SAMPLE.first(2), teacher_steps=4)


@dataclass(frozen=True)
class Blind(Decoder):
    """Ruins the images of these rows of every batch."""

    rows: list[int]
    scale: int = 4
    overflowed: bool = False

    @override
    def upcast(self) -> bool:
        return False

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        images = interpolate(latents[:, :3], scale_factor=4.0)
        images[self.rows] = np.inf
        return images


def test_the_teachers_image_that_is_not_finite_is_named_and_not_kept(model: Model, tmp_path: Path) -> None:
    file, second = tmp_path / "teacher.pt", rf"{SAMPLE.prompts[1]!r} and seed {SAMPLE.seeds[1]} is not finite"
    with pytest.raises(InvalidInput, match=second + ", decoded in float32 either"):
        objective(replace(model, decoder=Blind([1])), file)
    assert not file.exists()


def test_a_teacher_that_overflows_is_named_with_what_to_do(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "noises", lambda self, *_: lambda place: torch.full(self.latent_shape, np.nan))
    with pytest.raises(InvalidInput, match=rf"{SAMPLE.prompts[0]!r} .* is not finite; use bfloat16 or float32"):
        objective(model)


def test_kept_outputs_that_are_not_finite_are_made_again(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    good = objective(model, file).teacher_outputs.images
    kept = torch.load(file)
    torch.save(kept | {"images": torch.full_like(good, np.nan)}, file)
    assert torch.equal(objective(model, file).teacher_outputs.images, good)


def test_a_schedule_whose_images_are_not_finite_loses_and_no_picture_of_it_is_kept(model: Model, tmp_path: Path) -> None:
    judge = objective(model, samples=tmp_path)
    judge.evaluate(coarse(model))
    assert len(list(tmp_path.iterdir())) == 1
    blind = objective(model, samples=tmp_path / "blind")
    blind.model = replace(model, decoder=Blind([0]))
    assert blind.evaluate(coarse(model)).measurement.loss == WORST
    assert not (tmp_path / "blind").exists()


class Said(Progress, list[str]):
    """What a job says that takes no images."""

    @override
    def begin(self, name: str, images: int) -> None:
        if images == 0:
            self.append(name)

    @override
    def advance(self, images: int) -> None:
        pass


def test_a_search_with_a_decoder_that_overflows_measures_what_float32_makes(tmp_path: Path) -> None:
    folder = model_folders.scaled(model_folders.emoji(tmp_path / "emoji64"), 3e4)
    narrow, wide = load(folder, dtype="float16"), load(folder)
    half = objective(narrow).teacher_outputs.images
    assert narrow.decoder.overflowed
    assert torch.isfinite(half).all()
    assert float((half - objective(wide).teacher_outputs.images).abs().mean()) < 0.02, "the UNet still runs in float16"


def test_a_search_says_once_that_its_decoder_runs_in_float32(tmp_path: Path) -> None:
    folder = model_folders.scaled(model_folders.emoji(tmp_path / "emoji64"), 3e4)
    (tmp_path / "prompts.txt").write_text("red heart\ncat face\n")
    config = JobConfig(
        model=str(folder), prompts=str(tmp_path / "prompts.txt"), features=CLIP, dtype="float16", guidance=3, teacher_steps=8,
        tiers={"fast": 0.5}, budgets=(), screen=2, images=2, select=2, finals=2, heldout=2,
    )  # fmt: skip
    said = Said()
    job = Job(config, tmp_path / "run", said)
    for stage in ("screen", "select"):
        job.objective(stage)
    assert said == ["the decoder overflows in float16: it runs in a wider type"]
