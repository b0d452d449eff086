"""Distilled folders are known by what published ones look like, and drawn as their makers draw; what is doubtful is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from diffusers import DiffusionPipeline
from model_folders import change
from typer.testing import CliRunner

from engine.__main__ import app
from engine.fresh_noise import stacked
from engine.loading import load
from engine.model import Model
from engine.sampler import generate
from registry.errors import Unsupported
from registry.schedule import teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own

# What the published folders of Turbo and Lightning models say.
PUBLISHED: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
PUBLISHED |= {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
EULER, ANCESTRAL, DDIM = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"


def folder(place: Path, name: str, scheduler: str = EULER, spacing: str | None = "trailing", **said: Any) -> Path:
    made = model_folders.emoji(place / name)
    values = {**PUBLISHED, **({"timestep_spacing": spacing} if spacing else {}), **said}
    change(
        made / "scheduler" / "scheduler_config.json", () if spacing else ("timestep_spacing",), _class_name=scheduler, **values
    )
    change(made / "model_index.json", scheduler=["diffusers", scheduler])
    return made


def codes(model: Model) -> list[str]:
    return [notice.code for notice in model.notices]


@pytest.mark.parametrize(
    ("name", "scheduler", "steps"),
    [
        ("sd-turbo", EULER, 4),
        ("sdxl-turbo", ANCESTRAL, 4),
        ("SDXL-Lightning-2steps", EULER, 2),
        ("sdxl-lightning-4-steps", EULER, 4),
        ("sdxl_lightning_8step_unet", EULER, 8),
        ("Hyper-SDXL-1step", DDIM, 1),
        ("DreamShaperXLTurbo", EULER, 4),
    ],
)
def test_a_name_and_a_spacing_are_proof(tmp_path: Path, name: str, scheduler: str, steps: int) -> None:
    model = load(folder(tmp_path, name, scheduler))
    assert model.few_steps == steps
    assert codes(model) == []
    assert model.own_solver == {EULER: "euler", ANCESTRAL: "euler-ancestral", DDIM: "ddim"}[scheduler]


@pytest.mark.parametrize("place", ["model_index.json", "unet/config.json"])
def test_the_name_that_diffusers_wrote_down_counts_where_the_folder_has_another(tmp_path: Path, place: str) -> None:
    made = folder(tmp_path, "models")
    change(made / place, _name_or_path="stabilityai/sd-turbo")
    assert load(made).few_steps == 4
    assert load(folder(tmp_path, "mnt"), name="sd-turbo").few_steps == 4


@pytest.mark.parametrize(
    ("name", "scheduler", "spacing"),
    [
        ("dreamshaper-xl-lightning", EULER, "leading"),
        ("dreamshaper-xl-turbo", "DPMSolverSinglestepScheduler", None),
        ("sd15-lcm", DDIM, "leading"),
        ("my-model-4steps", DDIM, "leading"),
        ("models", EULER, "trailing"),
        ("models", ANCESTRAL, "trailing"),
    ],
)
def test_half_a_proof_is_said(tmp_path: Path, name: str, scheduler: str, spacing: str | None) -> None:
    model = load(folder(tmp_path, name, scheduler, spacing))
    assert model.few_steps is None
    assert codes(model) == ["perhaps_distilled"]


@pytest.mark.parametrize(
    ("name", "scheduler", "said"),
    [
        ("emoji64", DDIM, {}),
        ("stable-diffusion-v1-5", "PNDMScheduler", {"timestep_spacing": "leading"}),
        ("sdxl-base", EULER, {"timestep_spacing": "leading"}),
        ("zero-snr", EULER, {"rescale_betas_zero_snr": True}),
        ("checkpoint-15000-steps", DDIM, {}),
    ],
)
def test_an_ordinary_folder_is_not_suspected(tmp_path: Path, name: str, scheduler: str, said: dict[str, Any]) -> None:
    model = load(folder(tmp_path, name, scheduler, **said))
    assert model.few_steps is None
    assert codes(model) == []


def test_a_model_without_texts_is_not_suspected(tmp_path: Path) -> None:
    assert load(model_folders.ldm(tmp_path / "ldm-turbo-4steps")).notices == ()


@pytest.mark.parametrize(("said", "steps"), [(0, None), (1, 1), (8, 8)])
def test_a_folder_may_say_it_itself(tmp_path: Path, said: int, steps: int | None) -> None:
    made = folder(tmp_path, "sd-turbo")
    change(made / "model_index.json", few_steps=said)
    model = load(made)
    assert (model.few_steps, codes(model)) == (steps, [])


@pytest.mark.parametrize("said", [-1, "4", 4.0, True, [4]])
def test_a_number_of_steps_that_is_none_is_refused(tmp_path: Path, said: object) -> None:
    made = folder(tmp_path, "sd-turbo")
    change(made / "model_index.json", few_steps=said)
    with pytest.raises(Unsupported, match="few_steps") as caught:
        load(made)
    assert caught.value.param == "few_steps"


@pytest.mark.parametrize("scheduler", [EULER, ANCESTRAL, DDIM])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_its_images_are_the_pipelines_without_guidance(tmp_path: Path, scheduler: str, steps: int) -> None:
    """Ancestral adds noise between steps, which pipeline and image draw of the same seed."""
    made = folder(tmp_path, "sd-turbo", scheduler)
    model = load(made)
    program = model.compile(teacher(model.ref, model.solver(model.teacher_solver, steps)))
    latent = generate(
        model.network, program, model.noise(7)[None], model.encode(["red heart"]), fresh=stacked([model.noises(7)])
    )
    got = model.decode(latent)[0].permute(1, 2, 0)
    pipeline = DiffusionPipeline.from_pretrained(made)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 0.0, "num_inference_steps": steps, "output_type": "np"}
    want = pipeline("red heart", generator=torch.Generator().manual_seed(7), **options).images[0]
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=0, atol=1e-4)


def test_what_no_solver_walks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"TCDScheduler is for a distilled model.*distilled from") as caught:
        load(folder(tmp_path, "dreamshaper-8", "TCDScheduler"))
    assert caught.value.param == "scheduler"


def test_the_command_draws_a_distilled_model_as_it_was_taught(tmp_path: Path) -> None:
    made = folder(tmp_path, "sdxl-lightning-2step")
    out = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["generate", "--model", str(made), "--prompt", "cat", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "euler" in done.output
    assert "2 computed of the teacher's 2" in done.output
    model = load(made)
    one_row = model.macs.of_program(model.compile(teacher(model.ref, model.solver("euler", 2))), 1)
    assert f"{one_row / 1e9:.4f} G" in done.output, "no guidance: one row a step"
