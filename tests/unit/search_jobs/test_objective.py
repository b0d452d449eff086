"""What is measured, on the bundled model: the teacher is its own equal, and its outputs are computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.model import Model
from evaluation import extractor
from registry.schedule import Schedule, Segment
from search_jobs import objective as module
from search_jobs.config import WORST
from search_jobs.objective import Objective, Sample

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
    assert measure.loss < 1e-6
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
    assert silent.evaluate(silent.teacher.schedule).measurement.clip_score is None


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

    with pytest.raises(module.InvalidInput, match="not finite"):
        Objective(replace(model), Overflowing(), SAMPLE.first(2), teacher_steps=4)
