"""Latent consistency models: the guidance scale is an input of the UNet, and fresh noise is added between the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from diffusers import DiffusionPipeline
from model_folders import change
from torch import Tensor

from engine.condition import Condition, embedded
from engine.denoising_task import DenoisingTask
from engine.fresh_noise import stacked
from engine.guidance import USUAL_EMBEDDED
from engine.loading import load
from engine.macs import count_steps
from engine.model import Model
from engine.program import Program
from engine.sampler import generate
from engine.source import EncodedSource
from engine.waves import Waves
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Schedule, Segment, teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    return model_folders.lcm(tmp_path_factory.mktemp("lcm") / "dreamshaper-v7", tiny_config)


@pytest.fixture(scope="module")
def lcm(folder: Path) -> Model:
    return load(folder)


def latents(
    model: Model, program: Program, prompt: str, seed: int, guidance: float, source: EncodedSource | None = None
) -> Tensor:
    """What the plain loop makes of one image."""
    fresh, condition = stacked([model.noises(seed)]), model.encode([prompt], guidance)
    of_one = None if source is None else EncodedSource(source.latent[None], None if source.kept is None else source.kept[None])
    return generate(model.network, program, fresh(0), condition, None, guidance, fresh, of_one)[0]


def half_kept(model: Model) -> EncodedSource:
    """An image to start from, of which the left half stays."""
    kept = torch.zeros(1, *model.latent_shape[1:], dtype=torch.bool)
    kept[..., : model.latent_shape[2] // 2] = True
    return EncodedSource(model.noises(100)(0), kept)


def of_segments(model: Model, *segments: Segment, steps: int) -> Schedule:
    return Schedule(model=model.ref, solver=model.solver("lcm", steps), segments=segments)


def test_it_is_known_by_what_it_is_and_drawn_as_its_pipeline_draws(lcm: Model) -> None:
    assert lcm.notices == ()
    assert (lcm.teacher_solver, lcm.few_steps, lcm.embeds_guidance) == ("lcm", 4, True)
    assert lcm.usual_guidance == USUAL_EMBEDDED == 8.5
    assert (lcm.rows(1.0), lcm.rows(8.5)) == (1, 1)


@pytest.mark.parametrize("guidance", [1.0, 2.3, 8.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_its_images_are_the_pipelines_of_the_same_seed(folder: Path, lcm: Model, steps: int, guidance: float) -> None:
    """Noise and all: the pipeline draws what it adds between steps from the generator that drew the noise it begins with."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": guidance, "num_inference_steps": steps, "output_type": "latent"}
    want = pipeline("red heart", generator=torch.Generator().manual_seed(7), **options).images[0]
    got = latents(lcm, lcm.compile(lcm.teacher(steps)), "red heart", 7, guidance)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"original_inference_steps": 100, "timestep_scaling": 1.0, "beta_schedule": "linear"},
        {"original_inference_steps": 30, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"clip_sample": True, "clip_sample_range": 0.7, "timestep_scaling": 0.01, "steps_offset": 1},
    ],
)
def test_its_schedulers_settings_are_honoured(tmp_path: Path, tiny_config: Mapping[str, Any], scheduler: Any) -> None:
    made = model_folders.lcm(tmp_path / "model", tiny_config, **scheduler)
    pipeline, model = DiffusionPipeline.from_pretrained(made), load(made)
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline("tomato", generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="latent").images[0]
    got = latents(model, model.compile(model.teacher(3)), "tomato", 3, USUAL_EMBEDDED)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [4, 7, 256])
def test_a_scale_is_embedded_as_diffusers_does(folder: Path, width: int) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    for scale in (1.0, 2.5, 8.5, 30.0):
        want = pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), width)[0]
        assert torch.equal(embedded(scale, width), want)


def test_the_plain_pipeline_on_such_a_unet_is_the_same_model(
    folder: Path, tmp_path: Path, tiny_config: Mapping[str, Any]
) -> None:
    """A folder that names StableDiffusionPipeline, as some have it: diffusers embeds the scale there too."""
    made = model_folders.lcm(tmp_path / "model", tiny_config)
    change(made / "model_index.json", _class_name="StableDiffusionPipeline")
    pipeline, model = DiffusionPipeline.from_pretrained(made), load(made)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 5.0, "num_inference_steps": 4, "output_type": "latent"}
    want = pipeline("cat", generator=torch.Generator().manual_seed(1), **options).images[0]
    torch.testing.assert_close(latents(model, model.compile(model.teacher(4)), "cat", 1, 5.0), want, rtol=0, atol=1e-4)


def test_a_jump_lands_with_the_noise_that_the_teacher_lands_with(lcm: Model) -> None:
    """Of eight steps the full ones at 0 and 5: the second begins with the noise of place 5, on a level all its own."""
    program = lcm.compile(of_segments(lcm, Segment(partial=(1,)), Segment(partial=(3,)), steps=8))
    assert [(step.index, step.lands) for step in program.steps] == [(0, 1), (1, 4), (4, 7), (7, 8)]
    assert [step.noise > 0 for step in program.steps] == [True, True, True, False]
    noises = lcm.noises(5)
    drawn = torch.Generator().manual_seed(5)
    want = [torch.randn(lcm.latent_shape, generator=drawn) for _ in range(8)]
    for place in (0, 4, 4, 7, 1, 0):  # a step that is tried again, and another schedule of the same image
        assert torch.equal(noises(place), want[place])


def test_images_of_any_company_are_those_of_the_plain_loop(lcm: Model) -> None:
    """Other schedules, steps, seeds and guidance scales beside them, some that start from an image, of which they keep a part,
    and a wave that fails as a whole once."""
    schedules = [
        lcm.teacher(4),
        of_segments(lcm, Segment(partial=(1,), branch=2), Segment(partial=(1,), branch=2), steps=4),
        of_segments(lcm, Segment(partial=(2,), branch=1), steps=4),
        Schedule(model=lcm.ref, solver=lcm.solver("ddim", 4), segments=(Segment(),) * 4),
    ]
    scales = (1.0, 4.0, 8.5)
    programs = [(lcm.compile(schedule), seed, scale) for seed, schedule in enumerate(schedules) for scale in scales]
    cases: list[tuple[Program, int, float, EncodedSource | None]] = [(*one, None) for one in programs]
    for program, seed, scale in programs[: 2 * len(scales)]:
        cases.append((program.starting(0.5 if scale < 8 else 1.0), seed, scale, half_kept(lcm)))
        assert any(step.noise for step in cases[-1][0].steps), "a stochastic solver"
    waves = Waves[DenoisingTask](lcm.network, lcm.slots(2 * len(cases)))
    tasks = []
    for program, seed, scale, source in cases:
        noises = lcm.noises(seed)
        tasks.append(DenoisingTask(program, fresh=noises, masked=source is not None, source=source))
        waves.add(tasks[-1], noises(0), lcm.encode(["red heart"], scale))
        waves.tick()
    real, failures = lcm.network.full, iter([True])

    def failing(*args: Any, **options: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("once")
        return real(*args, **options)

    lcm.network.full = failing  # type: ignore[method-assign]
    try:
        while waves.tick():
            pass
    finally:
        del lcm.network.full
    assert next(failures, None) is None, "no wave failed"
    got = []
    for (program, seed, scale, source), task in zip(cases, tasks, strict=True):
        assert task.latent is not None
        torch.testing.assert_close(task.latent, latents(lcm, program, "red heart", seed, scale, source), rtol=0, atol=1e-4)
        got.append(task.latent)
    for one, other in zip(got[:: len(scales)], got[1 :: len(scales)], strict=True):
        assert (one - other).abs().max() > 1e-3, "the guidance scale plays no part"


def test_its_steps_are_counted_with_the_embedded_scale(lcm: Model, tiny_config: Mapping[str, Any]) -> None:
    config = {**tiny_config, "_class_name": "UNet2DConditionModel", "cross_attention_dim": model_folders.WIDTH}
    plain = count_steps(config, lcm.latent_shape, lcm.prompts.tokens)
    projection = 6 * tiny_config["block_out_channels"][0]  # six numbers to as many as the time is first embedded in
    assert lcm.macs.full.macs == plain.full.macs + projection
    assert lcm.macs.partial.keys() == plain.partial.keys() != set()
    assert all(lcm.macs.partial[branch].macs == macs.macs + projection for branch, macs in plain.partial.items())
    program = lcm.compile(lcm.teacher(4))
    assert lcm.macs.of_program(program, lcm.rows(8.5)) == 4 * lcm.macs.full.macs


def test_a_condition_holds_the_scale_of_each_row(lcm: Model) -> None:
    both = Condition.cat([lcm.encode(["a"], 2.0), lcm.encode(["a"], 3.0)])
    assert both.guidance is not None
    assert torch.equal(both.guidance, torch.stack([embedded(2.0, 6), embedded(3.0, 6)]))
    assert torch.equal(lcm.at_guidance(both[:1], 3.0).tensors[-1], both[1:].tensors[-1])


def test_what_cannot_be_is_refused_by_name(folder: Path, lcm: Model, tmp_path: Path, tiny_config: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"original_inference_steps of the scheduler \(50\).*got 51") as caught:
        lcm.compile(lcm.teacher(51))
    assert caught.value.param == "teacher_steps"
    with pytest.raises(ValueError, match="trailing; got leading"):
        lcm.solver("lcm", 4).__class__(name="lcm", teacher_steps=4, spacing="leading")
    made = model_folders.lcm(tmp_path / "model", tiny_config, thresholding=True)
    with pytest.raises(Unsupported, match="thresholding True in the scheduler config is not supported by the solver lcm"):
        load(made).teacher(4)
    change(made / "unet" / "config.json", time_cond_proj_dim=3)
    with pytest.raises(Unsupported, match="at least 4") as refused:
        load(made)
    assert refused.value.param == "time_cond_proj_dim"
    assert teacher(lcm.ref, lcm.solver("lcm", 4)).digest == lcm.teacher(4).digest
