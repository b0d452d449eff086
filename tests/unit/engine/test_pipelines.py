"""What diffusers mends at load is mended here, by pipeline class: the teacher's images are those of the pipeline itself.

Every rule is held against `from_pretrained` of the same folder. What nobody runs here is said, or refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import model_folders
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, LDMPipeline, StableDiffusionPipeline
from model_folders import change
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.loading import load
from engine.model import Model
from engine.pipelines import SERVED
from engine.sampler import generate
from registry.errors import FlexiError, Unsupported
from registry.schedule import SolverName, teacher

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' own, of what it mends
]
SAME = 1e-4
THEIRS = {"ddim": "DDIMScheduler", "dpmsolver++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    return model_folders.emoji(tmp_path / "emoji64")


def ours(
    model: Model, solver: SolverName = "ddim", steps: int = 10, guidance: float = 3.0, prompt: str = "red heart"
) -> Tensor:
    """The teacher's image of seed 7, (H, W, 3)."""
    program = model.compile(teacher(model.ref, model.solver(solver, steps)))
    negative = model.negative([""]) if guidance > 1 else None
    latent = generate(model.network, program, model.noise(7)[None], model.encode([prompt]), negative, guidance)
    return model.decode(latent)[0].permute(1, 2, 0)


def theirs(pipeline: Any, steps: int = 10, **options: Any) -> Tensor:
    """The pipeline's image of seed 7, (H, W, 3)."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    made = pipeline(num_inference_steps=steps, generator=generator, output_type="np", **options).images[0]
    return torch.from_numpy(made)


def text_image(pipeline: Any, steps: int = 10, guidance: float = 3.0) -> Tensor:
    return theirs(pipeline, steps, prompt="red heart", guidance_scale=guidance)


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("values", "drop"),
    [
        ({}, ()),
        ({}, ("clip_sample",)),
        ({"clip_sample": True}, ()),
        ({"clip_sample": True, "clip_sample_range": 2.0, "timestep_spacing": "leading"}, ()),
        ({"timestep_spacing": "leading", "steps_offset": 0}, ()),
        ({"timestep_spacing": "leading"}, ("steps_offset",)),
        ({}, ("timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample")),
        ({"timestep_spacing": "leading", "steps_offset": 3}, ()),
    ],
)
def test_stable_diffusion_does_not_clip_and_starts_one_step_later(
    emoji: Path, values: dict[str, Any], drop: tuple[str, ...]
) -> None:
    change(emoji / "scheduler" / "scheduler_config.json", drop, **values)
    same(ours(load(emoji)), text_image(DiffusionPipeline.from_pretrained(emoji)))


LEFT_OUT = ("timestep_spacing", "steps_offset", "clip_sample", "set_alpha_to_one")
WRITERS = ("PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDPMScheduler")


@pytest.mark.parametrize("solver", THEIRS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_solver_on_another_schedulers_folder_is_the_pipeline_with_that_solvers_scheduler(
    emoji: Path, writer: str, solver: SolverName
) -> None:
    """Its scheduler is made from the folder's, and then given to the constructor, which mends it."""
    change(emoji / "scheduler" / "scheduler_config.json", LEFT_OUT, _class_name=writer)
    change(emoji / "model_index.json", scheduler=["diffusers", writer])
    own = getattr(diffusers, writer).from_pretrained(emoji / "scheduler")
    scheduler = getattr(diffusers, THEIRS[solver]).from_config(own.config)
    same(ours(load(emoji), solver), text_image(StableDiffusionPipeline.from_pretrained(emoji, scheduler=scheduler)))


@pytest.mark.parametrize("solver", THEIRS)
def test_a_pndm_folder_without_a_spacing_is_the_pipeline_given_another_scheduler(emoji: Path, solver: SolverName) -> None:
    """As most people change a scheduler: from the loaded pipeline's."""
    change(emoji / "scheduler" / "scheduler_config.json", ("timestep_spacing",), _class_name="PNDMScheduler")
    change(emoji / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    pipeline = DiffusionPipeline.from_pretrained(emoji)
    pipeline.scheduler = getattr(diffusers, THEIRS[solver]).from_config(pipeline.scheduler.config)
    same(ours(load(emoji), solver), text_image(pipeline))


def test_the_schedulers_class_in_the_index_counts(emoji: Path) -> None:
    change(emoji / "scheduler" / "scheduler_config.json", ("timestep_spacing",))
    change(emoji / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    model = load(emoji)
    assert model.own_solver == "euler"
    same(ours(model, "euler"), text_image(DiffusionPipeline.from_pretrained(emoji)))


@pytest.mark.parametrize(
    ("version", "size", "side"),
    [("0.6.0", 16, 256), ("0.8.9", 8, 256), ("0.9.0", 16, 64), ("0.9.0.dev0", 16, 64), (None, 16, 64)],
)
def test_a_stable_diffusion_unet_saved_before_0_9_is_at_least_64_wide(
    emoji: Path, version: str | None, size: int, side: int
) -> None:
    change(
        emoji / "unet" / "config.json", () if version else ("_diffusers_version",), _diffusers_version=version, sample_size=size
    )
    model = load(emoji)
    assert model.image_size == (side, side)
    same(ours(model, steps=1), text_image(DiffusionPipeline.from_pretrained(emoji), steps=1))


MEANS = {"latents_mean": [0.5, -0.5, 0.2, 0.1], "latents_std": [1.0, 2.0, 0.5, 1.5]}


@pytest.mark.parametrize(("values", "drop"), [({}, ("scaling_factor",)), ({"shift_factor": 0.3}, ()), (MEANS, ())])
def test_stable_diffusion_reads_of_its_decoder_what_the_pipeline_reads(
    emoji: Path, values: dict[str, Any], drop: tuple[str, ...]
) -> None:
    """A factor left out is its class's; means are for XL only (tests/unit/engine/test_families.py), a shift for neither."""
    change(emoji / "vae" / "config.json", drop, **values)
    same(ours(load(emoji), steps=5), text_image(DiffusionPipeline.from_pretrained(emoji), steps=5))


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("component", ["vqvae", "unet"])
def test_weights_that_name_attention_as_the_first_releases_did_are_read(tmp_path: Path, component: str) -> None:
    folder = model_folders.ldm(tmp_path / "ldm")
    want = ours(load(folder), steps=3, guidance=1.0, prompt="")
    file = folder / component / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in load_file(file).items():
        block, _, last = name.rpartition(".")
        new = next((new for new in OLD_NAMES if block.endswith(f".{new}") and "attentions" in block), None)
        old[f"{block.removesuffix(new)}{OLD_NAMES[new]}.{last}" if new else name] = tensor
    assert old.keys() != load_file(file).keys()
    save_file(old, file, metadata={"format": "pt"})
    same(ours(load(folder), steps=3, guidance=1.0, prompt=""), want)


def test_a_size_of_two_numbers_is_not_mended(emoji: Path) -> None:
    change(emoji / "unet" / "config.json", _diffusers_version="0.6.0", sample_size=[16, 8])
    model = load(emoji)
    assert model.image_size == (64, 32)
    pipeline = DiffusionPipeline.from_pretrained(emoji)
    same(ours(model, steps=2), theirs(pipeline, 2, prompt="red heart", guidance_scale=3.0))


KEPT: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"clip_sample": True}, ()),
    ({}, ("clip_sample",)),
    ({"clip_sample": False, "steps_offset": 0}, ()),
    ({"clip_sample": False}, ("steps_offset",)),
]


@pytest.mark.parametrize(("values", "drop"), KEPT)
def test_latent_diffusion_keeps_what_its_scheduler_says(tmp_path: Path, values: dict[str, Any], drop: tuple[str, ...]) -> None:
    folder = model_folders.ldm(tmp_path / "ldm")
    change(folder / "scheduler" / "scheduler_config.json", drop, **values)
    same(ours(load(folder), guidance=1.0, prompt=""), theirs(LDMPipeline.from_pretrained(folder)))


@pytest.mark.parametrize(("values", "drop"), KEPT)
def test_stable_diffusion_xl_keeps_what_its_scheduler_says(
    tmp_path: Path, tiny_config: Mapping[str, Any], values: dict[str, Any], drop: tuple[str, ...]
) -> None:
    folder = model_folders.sdxl(tmp_path / "sdxl", tiny_config)
    change(folder / "scheduler" / "scheduler_config.json", drop, _class_name="DDIMScheduler", **values)
    change(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    change(folder / "unet" / "config.json", _diffusers_version="0.6.0")  # whose sizes it does not mend either
    pipeline = DiffusionPipeline.from_pretrained(folder, add_watermarker=False)
    same(ours(load(folder)), text_image(pipeline))


@pytest.mark.parametrize(
    ("named", "writer"),
    [("DDIMPipeline", "DDPMScheduler"), ("DDPMPipeline", "DDIMScheduler"), ("PNDMPipeline", "PNDMScheduler")],
)
@pytest.mark.parametrize(("values", "drop"), KEPT)
def test_pixel_models_are_the_ddim_pipeline_of_their_folder(
    tmp_path: Path, named: str, writer: str, values: dict[str, Any], drop: tuple[str, ...]
) -> None:
    """Which makes a DDIM scheduler of any other."""
    folder = model_folders.ddpm(tmp_path / "ddpm")
    change(folder / "scheduler" / "scheduler_config.json", drop, _class_name=writer, **values)
    change(folder / "model_index.json", _class_name=named, scheduler=["diffusers", writer])
    same(ours(load(folder), guidance=1.0, prompt=""), theirs(DDIMPipeline.from_pretrained(folder), eta=0.0))


def codes(model: Model) -> set[str]:
    return {notice.code for notice in model.notices}


def test_a_folder_that_asks_for_nothing_more_has_no_notice(emoji: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(emoji / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    with caplog.at_level(logging.WARNING, "engine"):
        assert load(emoji).notices == ()
    assert not caplog.records


CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]


@pytest.mark.parametrize(
    ("values", "drop"),
    [
        ({"safety_checker": CHECKER, "requires_safety_checker": True}, ()),
        ({"safety_checker": CHECKER, "requires_safety_checker": False}, ()),
        ({"requires_safety_checker": True}, ()),
        ({}, ("requires_safety_checker",)),  # diffusers' default is true
    ],
)
def test_a_safety_checker_that_nobody_runs_is_said_once(
    emoji: Path, values: dict[str, Any], drop: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    change(emoji / "model_index.json", drop, **values)
    with caplog.at_level(logging.WARNING, "engine"):
        model = load(emoji)
    assert codes(model) == {"safety_checker_not_run"}
    assert [record.getMessage() for record in caplog.records] == [notice.message for notice in model.notices]


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"unet_ema": ["diffusers", "UNet2DConditionModel"]}, "component_not_run", "unet_ema"),
        ({"add_watermarker": True}, "watermark_not_added", "watermark"),
        ({"_class_name": "StableDiffusionPAGPipeline"}, "pipeline_served_plainly", "StableDiffusionPAGPipeline"),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, "pipeline_served_plainly", "MyPipeline"),
    ],
)
def test_what_is_not_run_is_said(emoji: Path, values: dict[str, Any], code: str, said: str) -> None:
    change(emoji / "model_index.json", **values)
    model = load(emoji)
    assert codes(model) == {code}
    assert said in model.notices[0].message


@pytest.mark.parametrize(
    "named", ["StableDiffusionImg2ImgPipeline", "StableDiffusionSAGPipeline", "FlaxStableDiffusionPipeline"]
)
def test_a_pipeline_of_the_same_components_is_mended_as_the_plain_one(emoji: Path, named: str) -> None:
    change(emoji / "scheduler" / "scheduler_config.json", LEFT_OUT)
    change(emoji / "model_index.json", _class_name=named)
    same(ours(load(emoji)), text_image(StableDiffusionPipeline.from_pretrained(emoji)))


@pytest.mark.parametrize(
    ("named", "component"),
    [
        ("StableDiffusionControlNetPipeline", "controlnet"),
        ("StableDiffusionAdapterPipeline", "adapter"),
        ("StableDiffusionDepth2ImgPipeline", "depth_estimator"),
        ("StableDiffusionUpscalePipeline", "low_res_scheduler"),
        ("AnimateDiffPipeline", "motion_adapter"),
        ("LDMTextToImagePipeline", "bert"),
        ("StableUnCLIPPipeline", "prior"),
        ("KandinskyPipeline", "movq"),
        ("SomebodysPipeline", "reader"),
    ],
)
def test_a_pipeline_whose_images_need_another_component_is_refused_by_both_names(
    emoji: Path, named: str, component: str
) -> None:
    change(emoji / "model_index.json", _class_name=named, **{component: ["diffusers", "AModel"]})
    error = refused(emoji)
    assert named in error.message
    assert component in error.message


def refused(folder: Path) -> FlexiError:
    with pytest.raises(Unsupported) as caught:
        load(folder)
    return caught.value


def test_the_pipelines_that_are_served_are_diffusers_own() -> None:
    assert all(issubclass(getattr(diffusers, name), DiffusionPipeline) for name in SERVED)


def test_a_decoder_that_makes_no_images_is_refused(emoji: Path) -> None:
    change(emoji / "vae" / "config.json", out_channels=6)  # an image and its depth
    assert refused(emoji).param == "out_channels"


def test_a_text_encoder_that_masks_is_refused(emoji: Path) -> None:
    change(emoji / "text_encoder" / "config.json", use_attention_mask=True)
    assert refused(emoji).param == "use_attention_mask"


def test_a_setting_of_a_solver_that_is_not_chosen_is_no_reason_to_refuse(emoji: Path) -> None:
    change(
        emoji / "scheduler" / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler", final_sigmas_type="sigma_min"
    )
    change(emoji / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    model = load(emoji)
    own = diffusers.DPMSolverMultistepScheduler.from_pretrained(emoji / "scheduler")
    pipeline = StableDiffusionPipeline.from_pretrained(emoji, scheduler=DDIMScheduler.from_config(own.config))
    same(ours(model), text_image(pipeline))
    with pytest.raises(Unsupported, match=r"final_sigmas_type .*dpmsolver.*choose ddim"):
        model.solver("dpmsolver++", 10)
