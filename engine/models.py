"""A diffusers pipeline folder, loaded: UNet, text encoder, VAE, noise levels, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from engine.anatomy import Anatomy
from engine.macs import StepMacs, count_steps
from engine.program import NoiseLevels, Program, compile_program
from registry.errors import InvalidInput, NotFound, Unsupported
from registry.schedule import ModelRef, Name, Schedule, Solver, SolverName

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Text:
    """Tokenizer and text encoder of a text-to-image model."""

    tokenizer: Any
    encoder: Any

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Embed prompts: (n, tokens, dim). Longer prompts are cut at the tokenizer's limit, as diffusers does."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        hidden: Tensor = self.encoder(tokens.input_ids.to(device))[0]
        return hidden.to(dtype)


@dataclass(frozen=True)
class Model:
    """Everything generation needs. Latents are (channels, height, width) = `latent_shape`; images are `image_size` pixels."""

    ref: ModelRef
    anatomy: Anatomy
    levels: NoiseLevels
    text: Text
    vae: Any
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to contexts (n, tokens, dim)."""
        return self.text(prompts, self.device, self.dtype)

    def noise(self, seed: int) -> Tensor:
        """The starting noise of one image, (c, h, w), float32.

        Drawn on the CPU, so that a seed means the same on every device. Latents stay float32 whatever the UNet's dtype.
        """
        if not 0 <= seed < 2**63:
            raise InvalidInput(f"seed: must be between 0 and 2^63 - 1, got {seed}", param="seed")
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self.latent_shape, generator=generator).to(self.device)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W), float32 in [0, 1] on the CPU."""
        images = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1).cpu()

    def solver(self, name: SolverName, teacher_steps: int) -> Solver:
        """A solver on this model's own timestep spacing."""
        return Solver(name=name, teacher_steps=teacher_steps, spacing=self.levels.spacing)

    def compile(self, schedule: Schedule) -> Program:
        """The program of a schedule made for this model. Raises `InvalidInput` naming what does not fit."""
        if schedule.model.fingerprint != self.ref.fingerprint:
            raise InvalidInput(
                f"model.fingerprint: the schedule was made for {schedule.model.name} "
                f"({schedule.model.fingerprint[:19]}…), the loaded model is {self.ref.name} ({self.ref.fingerprint[:19]}…)",
                param="model.fingerprint",
            )
        return compile_program(schedule, self.levels, self.anatomy.branches)

    @cached_property
    def macs(self) -> StepMacs:
        """MACs of one UNet row for each kind of step, at this model's latent size."""
        context = self.encode([""]).shape[1:]
        return count_steps(self.anatomy.unet.config, self.latent_shape, (int(context[0]), int(context[1])))


def load(folder: str | Path, device: str = "cpu", dtype: str = "float32", name: str | None = None) -> Model:
    """Load a text-to-image pipeline folder in Stable Diffusion's layout.

    Raises `NotFound` without a `model_index.json`, `Unsupported` naming the component or setting this version cannot run.
    """
    root = Path(folder)
    if not (root / "model_index.json").is_file():
        raise NotFound(f"model: {root} is not a diffusers pipeline folder (no model_index.json)", param="model")
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype: must be one of {sorted(DTYPES)}, got {dtype!r}", param="dtype")
    place = _device(device)
    ref_name = _model_name(name or root.resolve().name.lower())
    index = _index(root)
    for component, wanted in (
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "CLIPTextModel"),
    ):
        found = index.get(component)
        if not isinstance(found, list) or found[1:] != [wanted]:
            raise Unsupported(f"model: {component} is {found}, this version runs {wanted}", param="model")

    # Here and not above: these imports take seconds, and a wrong folder should say so at once.
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = DTYPES[dtype]
    try:
        unet = UNet2DConditionModel.from_pretrained(root / "unet", dtype=kind, low_cpu_mem_usage=False).to(place).eval()
        vae = AutoencoderKL.from_pretrained(root / "vae", dtype=kind, low_cpu_mem_usage=False).to(place).eval()
        encoder = CLIPTextModel.from_pretrained(root / "text_encoder", dtype=kind).to(place).eval()
        tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
        scheduler = json.loads((root / "scheduler" / "scheduler_config.json").read_text())
    except OSError as error:  # what diffusers and transformers raise for a file that is not there
        raise NotFound(f"model: a file of {root} is missing: {error}", param="model") from error
    size, scale = int(unet.config.sample_size), 2 ** (len(vae.config.block_out_channels) - 1)
    return Model(
        ref=ModelRef(name=ref_name, family="unet2d-condition", fingerprint=fingerprint(root)),
        anatomy=Anatomy(unet.requires_grad_(False)),
        levels=noise_levels(scheduler),
        text=Text(tokenizer, encoder),
        vae=vae,
        device=place,
        dtype=kind,
        latent_shape=(unet.config.in_channels, size, size),
        image_size=(size * scale, size * scale),
    )


def noise_levels(config: dict[str, Any]) -> NoiseLevels:
    """Noise levels from a diffusers scheduler configuration, whichever scheduler wrote it.

    Raises `Unsupported` for settings that change the update rule and that the programs cannot express.
    """
    from diffusers import DDIMScheduler

    for setting in ("thresholding", "clip_sample", "rescale_betas_zero_snr"):
        if config.get(setting):
            raise Unsupported(f"scheduler config {setting} = true is not supported yet", param=setting)
    scheduler = DDIMScheduler.from_config({"clip_sample": False, **config})
    return NoiseLevels(
        alphas_cumprod=scheduler.alphas_cumprod.numpy().astype(np.float64),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        prediction=scheduler.config.prediction_type,
        spacing=scheduler.config.timestep_spacing,
        steps_offset=scheduler.config.steps_offset,
    )


def fingerprint(root: Path) -> str:
    """SHA-256 over the names and contents of the pipeline's files (every component that model_index.json names)."""
    index = _index(root)
    components = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    files = [root / "model_index.json", *(f for c in components for f in (root / c).rglob("*") if f.is_file())]
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _index(root: Path) -> dict[str, Any]:
    try:
        index = json.loads((root / "model_index.json").read_text())
    except ValueError as error:
        raise Unsupported(f"model: {root}/model_index.json is not JSON: {error}", param="model") from error
    if not isinstance(index, dict):
        raise Unsupported(f"model: {root}/model_index.json must hold a JSON object", param="model")
    return index


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"device: torch knows no device {name!r}", param="device") from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise InvalidInput(f"device: {name} was asked for, but torch sees no such CUDA device", param="device")
    return device


def _model_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidInput(f"name: {name!r} cannot name a model; give one of letters, digits, . _ -", param="name") from error
