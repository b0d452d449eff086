"""DiT folders: they load, draw what diffusers draws, ride in waves like any other model, and what is no DiT is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_folders
import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, VQModel
from diffusers.pipelines.dit import pipeline_dit
from model_folders import change
from places import ROOT
from torch import Tensor

from engine.adapters import LoraReader
from engine.branches import BlockPairs
from engine.compiling import warm
from engine.denoising_task import DenoisingTask
from engine.folder_check import check
from engine.loading import load
from engine.model import Model
from engine.policy import FCFS
from engine.sampler import generate
from engine.waves import Waves
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Blocks, Correction, Schedule, Segment

SAME = 1e-4
SCHEDULES = [
    (Segment.reusing(Blocks(1, 0), (1, 2)),) * 3,
    (Segment.reusing(Blocks(0, 2), (1,)),) * 3,
    (Segment.reusing(Blocks(2, 1), (2,)), Segment(), Segment.reusing(Blocks(0, 0), (1,))),
    (Segment(),) * 9,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.dit(tmp_path_factory.mktemp("dit") / "dit")


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.flow_dit(tmp_path_factory.mktemp("flow") / "flow-dit")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    torch.set_num_threads(1)
    return load(folder)


@pytest.fixture(scope="module")
def flow(flow_folder: Path) -> Model:
    torch.set_num_threads(1)
    return load(flow_folder)


def drawn(model: Model, prompts: list[str], steps: int, guidance: float) -> Tensor:
    """The teacher's latents (n, c, h, w) from the noise of seeds 0, 1, …."""
    noise, program = torch.stack([model.noise(seed) for seed in range(len(prompts))]), model.compile(model.teacher(steps))
    return generate(model.network, program, noise, model.encode(prompts), model.negative([""] * len(prompts)), guidance)


@torch.inference_mode()
def test_all_full_steps_are_diffusers_pipeline(folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its latents, as its autoencoder gets them, from the same noise."""
    pipeline, latents = DiTPipeline.from_pretrained(folder), list[Tensor]()
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: torch.stack([model.noise(0), model.noise(1)]))
    monkeypatch.setattr(pipeline.vae, "decode", lambda given: latents.append(given) or SimpleNamespace(sample=given[:, :3]))
    pipeline([1, 7], guidance_scale=4.0, num_inference_steps=5, output_type="pt")
    got = drawn(model, ["goldfish", "7"], 5, 4.0)
    torch.testing.assert_close(got, pipeline.vae.config.scaling_factor * latents[0], rtol=0, atol=SAME)


@torch.inference_mode()
def test_all_full_steps_of_flow_matching_are_what_diffusers_own_parts_make(flow_folder: Path, flow: Model) -> None:
    transformer = DiTTransformer2DModel.from_pretrained(flow_folder / "transformer").float()
    vq = VQModel.from_pretrained(flow_folder / "vqvae").float()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(flow_folder / "scheduler")
    scheduler.set_timesteps(5)
    latents, classes = torch.stack([flow.noise(0), flow.noise(1)]), torch.tensor([1, 4, 5, 5])  # "B", "E", and none
    for timestep in scheduler.timesteps:
        wanted, unwanted = transformer(torch.cat([latents] * 2), timestep.expand(4), classes).sample.chunk(2)
        latents = scheduler.step(unwanted + 3.0 * (wanted - unwanted), timestep, latents).prev_sample
    got = drawn(flow, ["B", "E"], 5, 3.0)
    torch.testing.assert_close(got, latents, rtol=0, atol=SAME)
    images = vq.decode(latents / vq.config.scaling_factor).sample / 2 + 0.5
    assert (flow.decode(got) - images.clamp(0, 1)).abs().max() <= 1e-3


def test_a_model_knows_what_it_draws_and_at_which_size(model: Model, flow: Model) -> None:
    assert (model.ref.family, model.latent_shape, model.fixed_size) == ("dit-transformer2d", (4, 8, 8), True)
    assert model.prompts.classes[:2] == ["tench, Tinca tinca", "goldfish"]
    assert model.encode(["tench"]).labels == model.encode(["tench, Tinca tinca"]).labels == model.encode(["0"]).labels
    assert model.negative([""]).labels == torch.tensor([1000]), "the class after the last one means none"
    assert (flow.prompts.classes, flow.negative([""]).labels) == (list("ABCDE"), torch.tensor([5]))
    assert (flow.teacher_solver, model.teacher_solver) == ("euler", "ddim")
    assert flow.network.branches == BlockPairs(6)
    with pytest.raises(InvalidInput, match="only"):
        model.other_size(type(model.image_size)(128, 128))


@torch.inference_mode()
def test_images_of_all_branches_and_solvers_share_waves_and_end_as_alone(flow: Model) -> None:
    """Six tasks of four schedules, guided and not, with corrections and extrapolations, one joining when others have run."""
    jobs = list[tuple[Schedule, float | None]]()
    for i, segments in enumerate(SCHEDULES):
        solver = flow.solver("dpmsolver++" if i % 2 else "euler", 9)
        jobs.append((Schedule(model=flow.ref, solver=solver, segments=segments), 2.5 if i != 1 else None))
    first = jobs[0][0]
    weights = [Correction(guidance=1.1, latent=0.01, extrapolation=0.5 if i in first.extrapolating else 0) for i in range(9)]
    jobs.append((first.model_copy(update={"corrections": tuple(weights)}), 2.5))
    jobs.append((jobs[2][0], None))
    waves, condition, negative = Waves(flow.network, flow.slots(12), FCFS(5)), flow.encode(["C"]), flow.negative([""])
    tasks = [DenoisingTask(flow.compile(schedule), guidance) for schedule, guidance in jobs]
    for seed, task in enumerate(tasks):
        waves.add(task, flow.noise(seed), condition, None if task.guidance is None else negative)
        waves.tick()
    while waves.tick():
        pass
    for seed, (task, (schedule, guidance)) in enumerate(zip(tasks, jobs, strict=True)):
        alone = generate(
            *(flow.network, flow.compile(schedule), flow.noise(seed)[None], condition),
            None if guidance is None else negative,
            guidance or 1.0,
        )
        assert task.latent is not None
        torch.testing.assert_close(task.latent, alone[0], rtol=0, atol=1e-5)


def test_a_slot_holds_one_residual_of_the_largest_branch(flow: Model) -> None:
    latent, residual, label = 2 * 4 * 3 * 8 * 8, 4 * 16 * 16, 64
    assert flow.slot_bytes() == latent + residual + label


def test_a_branch_that_it_does_not_have_names_the_segment(flow: Model) -> None:
    schedule = Schedule(model=flow.ref, solver=flow.solver("euler", 2), segments=(Segment.reusing(Blocks(4, 2), (1,)),))
    with pytest.raises(InvalidInput, match=r"6 blocks.*got 4\+2") as caught:
        flow.compile(schedule)
    assert caught.value.param == "segments.0.branch"


def test_an_old_folder_calls_it_by_the_name_of_all_transformers(folder: Path, model: Model, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    change(old / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    more = {"cross_attention_dim": None, "num_vector_embeds": None, "attention_type": "default", "caption_channels": None}
    change(old / "transformer" / "config.json", _class_name="Transformer2DModel", **more)
    check(old)
    assert torch.equal(drawn(load(old), ["3"], 2, 2.0), drawn(model, ["3"], 2, 2.0))


def test_it_can_tell_of_itself_without_weights(flow_folder: Path, flow: Model) -> None:
    empty = load(flow_folder, weights=False)
    assert empty.macs == flow.macs
    assert empty.slot_bytes() == flow.slot_bytes()
    assert empty.ref == flow.ref


def test_what_is_compiled_runs_for_any_rows(flow_folder: Path) -> None:
    compiled = load(flow_folder)
    assert warm(compiled, 3, images=(1,)).graphs == 0, "nothing is compiled here, and every kind of step runs"


def a_text_encoder(root: Path) -> None:
    change(root / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])


def another_transformer(root: Path) -> None:
    change(root / "model_index.json", transformer=["diffusers", "SanaTransformer2DModel"])


def another_kind(root: Path) -> None:
    change(root / "transformer" / "config.json", norm_type="ada_norm_single")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (a_text_encoder, "text_encoder beside a transformer that draws classes is not supported"),
        (another_transformer, "transformer is SanaTransformer2DModel, this version runs DiTTransformer2DModel or"),
        (another_kind, "norm_type: 'ada_norm_single' in the transformer config is not supported"),
    ],
)
def test_other_transformers_are_refused_by_name_before_torch_is_asked(
    flow_folder: Path, tmp_path: Path, spoil: Any, text: str
) -> None:
    spoilt = Path(shutil.copytree(flow_folder, tmp_path / "spoilt"))
    spoil(spoilt)
    for refusing in (check, load):
        with pytest.raises(Unsupported) as caught:
            refusing(spoilt)
        assert text in f"{caught.value.param}: {caught.value}"


def test_beside_a_unet_a_transformer_is_not_run_and_that_is_said(tmp_path: Path) -> None:
    both = model_folders.ldm(tmp_path / "ldm")
    change(both / "model_index.json", transformer=["diffusers", "DiTTransformer2DModel"])
    assert [notice.code for notice in load(both).notices] == ["component_not_run"]


def test_a_latent_of_other_channels_is_refused(flow_folder: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(flow_folder, tmp_path / "spoilt"))
    change(spoilt / "transformer" / "config.json", in_channels=4, out_channels=4)
    with pytest.raises(Unsupported, match="is 4 in the transformer config, but latents of vqvae have 3 channels"):
        load(spoilt)


def test_loras_are_refused(flow_folder: Path) -> None:
    with pytest.raises(Unsupported, match="LoRAs of a transformer are not supported"):
        LoraReader(flow_folder)


def test_a_look_at_its_folder_needs_no_torch(flow_folder: Path) -> None:
    looking = (
        f"import sys; from engine.folder_check import check; check({str(flow_folder)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", looking], cwd=ROOT, check=True)
