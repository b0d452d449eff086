"""A model, loaded: UNet, prompts, decoder, noise levels. Which families there are and how a folder shows which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from engine.components import fitting_unet, refuse_width
from engine.condition import Condition
from engine.config import reason, sides
from engine.decoders import Autoencoder, Decoder, Pixels, pictures
from engine.device import to_device
from engine.folder import Folder, readable
from engine.macs import StepMacs, count_steps, meta_unet
from engine.noise import NoiseLevels, noise_levels
from engine.program import Program, compile_program
from engine.prompts import ClassPrompts, NoPrompts, Prompts, TextPrompts, TwoTextPrompts
from engine.slots import Slots
from engine.unrolled import UNet, UnrolledUNet
from registry.document import Name
from registry.errors import InvalidInput, NotFound, Unsupported
from registry.schedule import ModelRef, Schedule, Solver, SolverName

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAMILIES: dict[str, Literal["unet2d-condition", "unet2d"]] = {
    "UNet2DConditionModel": "unet2d-condition",
    "UNet2DModel": "unet2d",
}


@dataclass(frozen=True)
class Model:
    """Everything generation needs. Latents are (channels, height, width) = `latent_shape`."""

    ref: ModelRef
    network: UnrolledUNet
    levels: NoiseLevels
    prompts: Prompts
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.latent_shape[1] * self.decoder.scale, self.latent_shape[2] * self.decoder.scale

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to conditions, one row each. Raises `InvalidInput` for a prompt that means nothing to this model."""
        return self.prompts.encode(prompts)

    def negative(self, prompts: Sequence[str]) -> Condition:
        """Negative prompts to conditions, one row each. Raises `InvalidInput` for a model without classifier-free guidance."""
        return self.prompts.negative(prompts)

    def noise(self, seed: int) -> Tensor:
        """The starting noise of one image, (c, h, w), float32, of unit variance.

        Drawn on the CPU, so that a seed means the same on every device. Latents stay float32 whatever the UNet's dtype.
        """
        if not 0 <= seed < 2**63:
            raise InvalidInput(f"must be between 0 and 2^63 - 1, got {seed}", param="seed")
        generator = torch.Generator("cpu").manual_seed(seed)
        return to_device(torch.randn(self.latent_shape, generator=generator), self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W), float32 in [0, 1] on the CPU."""
        images = self.decode_later(latents)
        self.network.fence().wait()
        return images

    def decode_later(self, latents: Tensor) -> Tensor:
        """`decode` for those who have other things to do: the images are there once a fence behind this call is passed."""
        return pictures(self.decoder, latents)

    def solver(self, name: SolverName, teacher_steps: int) -> Solver:
        """A solver on this model's own timestep spacing and noise levels."""
        karras = self.levels.karras and name != "ddim"  # for which diffusers has none
        return Solver(name=name, teacher_steps=teacher_steps, spacing=self.levels.spacing, karras=karras)

    def compile(self, schedule: Schedule) -> Program:
        """The program of a schedule made for this model. Raises `InvalidInput` naming what does not fit."""
        if schedule.model.fingerprint != self.ref.fingerprint:
            raise InvalidInput(
                f"the schedule was made for {schedule.model.name} "
                f"({schedule.model.fingerprint[:19]}…), the loaded model is {self.ref.name} ({self.ref.fingerprint[:19]}…)",
                param="model.fingerprint",
            )
        if schedule.model.family != self.ref.family:
            message = f"the schedule was made for {schedule.model.family}, the loaded model is {self.ref.family}"
            raise InvalidInput(message, param="model.family")
        return compile_program(schedule, self.levels, self.network.branches)

    def slots(self, capacity: int) -> Slots:
        """Memory for `capacity` UNet rows in flight."""
        return Slots(self.latent_shape, self.macs.features, capacity, self.device, self.dtype)

    @cached_property
    def macs(self) -> StepMacs:
        """MACs of one UNet row for each kind of step, at this model's latent size."""
        return count_steps(self.network.unet.config, self.latent_shape, self.prompts.tokens)


def load(
    folder: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    name: str | None = None,
    channels_last: bool = False,
    compiled: bool = False,
) -> Model:
    """Load a diffusers pipeline folder: Stable Diffusion 1, 2 or XL, latent diffusion (class-conditional or not), DDPM.

    What it is follows from its components: `text_encoder` (and `text_encoder_2`), `class_embedder` (a table of classes, which
    diffusers has no class for: config.json and one tensor) or a UNet with class labels, else unconditional; `vae` or `vqvae`,
    else pixels. `channels_last` lays the UNet's weights out for tensor cores, `compiled` gives its blocks to torch.compile.

    Raises `NotFound` for what is not there, `Unsupported` naming the component or setting this version cannot run.
    """
    files = Folder(folder)
    if dtype not in DTYPES:
        raise InvalidInput(f"must be one of {sorted(DTYPES)}, got {dtype!r}", param="dtype")
    place, kind = _device(device), DTYPES[dtype]
    ref_name = _model_name(name or files.root.resolve().name.lower())
    with readable(files.root, "model"):
        config = fitting_unet(files)
        meta_unet(config)  # says what is wrong with a configuration before any weights are read
        height, width = sides(config["sample_size"])
        scheduler = files.config("scheduler", "scheduler_config.json")
        levels = noise_levels({"_class_name": files.component("scheduler"), **scheduler})
        unet = _unet(files, kind).to(place)
        decoder = _decoder(files, place, kind)
        pixels = (height * decoder.scale, width * decoder.scale)
        prompts = _prompts(files, config, pixels, place, kind)
        fingerprint = files.fingerprint()
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    network = UnrolledUNet(unet)
    if compiled:
        network.compile()
    return Model(
        ref=ModelRef(name=ref_name, family=FAMILIES[type(unet).__name__], fingerprint=fingerprint),
        network=network,
        levels=levels,
        prompts=prompts,
        decoder=decoder,
        device=place,
        dtype=kind,
        latent_shape=(config["in_channels"], height, width),
    )


def _unet(files: Folder, dtype: torch.dtype) -> UNet:
    import diffusers  # here and not above: it takes seconds, and a wrong folder should say so at once

    family = getattr(diffusers, str(files.component("unet")))
    unet: UNet = _weights(family, files, "unet", dtype=dtype, low_cpu_mem_usage=False)
    return unet.eval().requires_grad_(False)


def _weights(family: Any, files: Folder, component: str, **options: Any) -> Any:
    """A network with its weights. Raises `NotFound` for weights that are not there, and `Unsupported` for those that cannot be
    read, or are not exactly what its configuration asks for: diffusers and transformers would draw the rest at random."""
    path = files.path(component)
    try:
        network, report = family.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:  # every library and file format has its own
        if not any(file.suffix in (".safetensors", ".bin") for file in path.glob("*model*")):
            raise NotFound(f"the weights of {component} are missing: {reason(error)}", param="model") from error
        message = f"the weights of {component} are corrupt or do not fit its configuration: {reason(error)}"
        raise Unsupported(message, param="model") from error
    for what, said in (("missing_keys", "lack"), ("unexpected_keys", "have besides what its configuration asks for")):
        names = sorted(report[what])
        if names and not (what == "unexpected_keys" and component.startswith("text_encoder")):  # theirs are harmless leftovers
            message = f"the weights of {component} {said}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
            raise Unsupported(message, param="model")
    return network


def _decoder(files: Folder, device: torch.device, dtype: torch.dtype) -> Decoder:
    import diffusers

    component = next((name for name in ("vae", "vqvae") if files.component(name)), None)
    if component is None:
        return Pixels()
    if dtype == torch.float16 and files.config(component).get("force_upcast"):
        dtype = torch.float32  # Stable Diffusion XL's overflows in half precision
    family = getattr(diffusers, str(files.component(component)))
    vae = _weights(family, files, component, dtype=dtype, low_cpu_mem_usage=False)
    return Autoencoder(vae.to(device).eval().requires_grad_(False))


def _text(files: Folder, suffix: str, device: torch.device, dtype: torch.dtype) -> TextPrompts:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name, folder = f"tokenizer{suffix}", files.root / f"tokenizer{suffix}"
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise NotFound(f"{name} is missing: neither tokenizer.json nor vocab.json is in {folder}", param="model")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # of several libraries
        raise Unsupported(f"{name} cannot be read: {reason(error)}", param="model") from error
    family = getattr(transformers, str(files.component(f"text_encoder{suffix}")))
    encoder = _weights(family, files, f"text_encoder{suffix}", dtype=dtype).to(device).eval()
    limits = {"max_position_embeddings": tokenizer.model_max_length, "vocab_size": len(tokenizer)}
    for field, value in limits.items():
        limit = getattr(encoder.config, field)
        if not 1 <= value <= limit:
            what = "model_max_length" if field == "max_position_embeddings" else "number of words"
            message = f"{what} of {name} must be between 1 and {limit}, {field} of its encoder, got {value}"
            raise Unsupported(message, param="model")
    return TextPrompts(tokenizer, encoder)


def _prompts(files: Folder, config: dict[str, Any], size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Prompts:
    if files.component("text_encoder_2"):
        first, second = _text(files, "", device, dtype), _text(files, "_2", device, dtype)
        if first.tokens != second.tokens:
            message = f"tokenizer and tokenizer_2 must cut at the same length, got {first.tokens} and {second.tokens}"
            raise Unsupported(message, param="model")
        return TwoTextPrompts(first, second, size, zeros=bool(files.index.get("force_zeros_for_empty_prompt", True)))
    if files.component("text_encoder"):
        return _text(files, "", device, dtype)
    if files.component("class_embedder"):
        table = _table(files.path("class_embedder")).to(device, dtype)
        refuse_width(config, table.shape[1], "class_embedder")
        null = files.config("class_embedder").get("null_class", len(table) - 1)  # latent diffusion adds it as the last row
        if type(null) is not int or not 0 <= null < len(table):
            message = f"null_class of class_embedder must be between 0 and {len(table) - 1}, got {null!r}"
            raise Unsupported(message, param="model")
        return ClassPrompts(len(table), device, table, null, _class_names(files, len(table)))
    classes = config.get("num_class_embeds")
    if classes is not None:
        return ClassPrompts(int(classes), device, names=_class_names(files, int(classes)))
    return NoPrompts()


def _class_names(files: Folder, classes: int) -> dict[str, int]:
    """Word to number, from the `id2label` of model_index.json. Raises `Unsupported` where it is no such table."""
    labels = files.index.get("id2label") or {}
    try:
        names = {str(word): int(number) for number, word in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Unsupported(f"id2label must give words to class numbers: {error}", param="model") from error
    for word, number in names.items():
        if not 0 <= number < classes:
            raise Unsupported(f"id2label names class {number} ({word}), the last one is {classes - 1}", param="model")
    return names


def _table(folder: Path) -> Tensor:
    """The one tensor (classes, dim) of a class embedder's safetensors file, whatever its name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = next(iter(sorted(folder.glob("*.safetensors"))), folder / "diffusion_pytorch_model.safetensors")
    try:
        tensors = list(load_file(file).values())
    except SafetensorError as error:
        raise Unsupported(f"the weights of class_embedder are corrupt: {reason(error)}", param="model") from error
    if len(tensors) != 1 or tensors[0].ndim != 2:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise Unsupported(f"class_embedder must hold one tensor (classes, dim), got {shapes}", param="model")
    return tensors[0]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"torch knows no device {name!r}", param="device") from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise InvalidInput(f"{name} was asked for, but torch sees no such CUDA device", param="device")
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # meta computes nothing, others are not in this build
        raise InvalidInput(f"torch cannot compute on {name} here; say cpu or cuda", param="device") from error
    return device


def _model_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidInput(f"{name!r} cannot name a model; give one of letters, digits, . _ -", param="name") from error
