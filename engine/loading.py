"""How a model is loaded: which families there are, how a folder's components show which one it is, and their weights."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.compiling import Compilation
from engine.components import refuse_width
from engine.config import defaults, reason, sides
from engine.decoders import WIDER, Autoencoder, Decoder, Pixels, type_name
from engine.families.family import Family
from engine.families.table import family_in
from engine.few_steps import few_steps
from engine.folder import Folder
from engine.guidance import OFF
from engine.macs import meta_network
from engine.model import Model
from engine.model_name import folder_name, given_name
from engine.noise import NoiseLevels
from engine.notice import Notice
from engine.pipelines import Pipeline, notices, pipeline_of, refuse_foreign
from engine.prompts import ClassPrompts, NoPrompts, Prompts
from engine.schedulers import nearest_solver, noise_levels
from engine.stored_file import readable
from engine.text_layouts import FLUX, text_layout
from engine.text_loading import text_prompts
from engine.usual_guidance import card_guidance, usual_guidance
from engine.weights import read_weights_to
from registry.errors import InvalidInput, Unsupported
from registry.schedule import ModelRef, SolverName

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    folder: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    name: str | None = None,
    compiled: bool = False,
    weights: bool = True,
    text_device: str | None = None,
) -> Model:
    """Load a diffusers pipeline folder: Stable Diffusion 1, 2 or XL, latent diffusion (class-conditional or not), DDPM, DiT,
    PixArt.

    What it is follows from its components: text encoders (`engine.text_layouts`), `class_embedder` (a table of classes, which
    diffusers has no class for: config.json and one tensor) or a UNet with class labels, else unconditional; `vae` or `vqvae`,
    else pixels. `compiled` has UNet and decoder compiled at their first calls, and laid out as tensor cores like it
    (`engine.compiling`, which can also do it beforehand). Schedules call it `name`; without one, the folder's name makes one
    (`engine.model_name`). Text encoders run on `text_device`, by default where the rest does. Without `weights` all networks
    are on the device `meta`: the model can tell all of itself, and make nothing.

    Raises `NotFound` for what is not there, `Unsupported` naming the component or setting this version cannot run.
    """
    files = Folder(folder)
    if dtype not in DTYPES:
        raise InvalidInput(f"must be one of {sorted(DTYPES)}, got {dtype!r}", param="dtype")
    torch_device, torch_dtype = _device(device), DTYPES[dtype]
    texts = _device(text_device, "text_device") if text_device else torch_device
    places = _Places(torch_device, texts) if weights else _Places(*[torch.device("meta")] * 2)
    given = given_name(name) if name else None
    with readable(files.root, "model"), files.steady():
        plan = _planned(files, given)
        channels = plan.family.channels(plan.config)
        height, width = sides(plan.config["sample_size"])
        with ThreadPoolExecutor(1, "fingerprint") as beside:  # hashing lets other threads run
            hashed = beside.submit(files.fingerprint)
            module = _network(files, plan.config, places.network, torch_dtype)
            decoder = _decoder(files, plan.pipeline, channels, places.network, torch_dtype)
            pixels = (height * decoder.scale, width * decoder.scale)
            prompts = _prompts(files, plan, pixels, places, torch_dtype)
            fingerprint = hashed.result()
    ref_name = given or folder_name(files.root, fingerprint)
    if not given and ref_name != files.root.resolve().name:
        log.info("the model in %s is called %s: no name was given", files.root, ref_name)
    for notice in plan.notices:
        log.warning("%s", notice.message)
    compilation = Compilation() if compiled else None
    if compilation and isinstance(decoder, Autoencoder):
        compilation.decoder(decoder.vae)
    network = plan.family.unrolled(module, compilation.region if compilation else None)
    return Model(
        ref=ModelRef(name=ref_name, family=plan.family.name(plan.config), fingerprint=fingerprint),
        network=network,
        levels=plan.levels.of_tokens(height * width // network.size_multiple**2),
        prompts=prompts,
        decoder=decoder,
        device=torch_device,
        dtype=torch_dtype,
        latent_shape=(channels, height, width),
        notices=plan.notices,
        own_solver=plan.own_solver,
        few_steps=plan.few_steps,
        usual_guidance=plan.guidance,
        fixed_size=files.decoder is None or not files.component("text_encoder"),
        texts_elsewhere=texts != torch_device,
        earlier_fingerprint=cache(files.earlier_fingerprint),
    )


class Usual(NamedTuple):
    """What a model is drawn with: of a distilled one the steps that it was taught, and the guidance scale."""

    few_steps: int | None
    guidance: float


def usual(folder: str | Path, name: str | None = None) -> Usual:
    """What the model in this folder is drawn with, by its configurations alone: no weights are read.

    name: the model's, where one was given. Raises what `load` raises of them.
    """
    files = Folder(folder)
    with readable(files.root, "model"):
        plan = _planned(files, given_name(name) if name else None)
    return Usual(plan.few_steps, plan.guidance)


class _Places(NamedTuple):
    """Devices: of the network and of all that is not said here, and of text encoders."""

    network: torch.device
    texts: torch.device


@dataclass(frozen=True)
class _Plan:
    """What a folder's configurations come to, before any weights are read. `config`: the network's complete one."""

    pipeline: Pipeline
    family: Family
    config: dict[str, Any]
    levels: NoiseLevels
    own_solver: SolverName
    few_steps: int | None
    guidance: float
    notices: tuple[Notice, ...]


def _planned(files: Folder, name: str | None = None) -> _Plan:
    """Of components that fit each other and whose files are there. `name`: the model's, where one was given."""
    refuse_foreign(files)
    pipeline = pipeline_of(files)
    family = family_in(files)
    config = pipeline.mended(family.fitting(files))
    meta_network(config)  # says what is wrong with a configuration before any weights are read
    sides(config["sample_size"])
    levels = _levels(files, pipeline)
    own_solver = nearest_solver(files.component("scheduler"))
    taught = few_steps(files, name or folder_name(files.root, ""), levels, own_solver)
    files.check()
    guidance, notice = OFF, None
    if _guides(files, family, config):
        distilled, embedded = taught.steps is not None, family.usual_guidance(config)
        guidance, notice = usual_guidance(card_guidance(files.root), embedded, distilled, pipeline.guidance)
    said = (*notices(files), *filter(None, [taught.notice, notice]))
    return _Plan(pipeline, family, config, levels, own_solver, taught.steps, guidance, said)


def _guides(files: Folder, family: Family, config: dict[str, Any]) -> bool:
    """Whether prompts guide, as `Prompts.guides` of the loaded model says it, by the configurations alone."""
    if text_layout(files) is FLUX:
        return bool(config["guidance_embeds"])
    if files.component("text_encoder") or files.component("class_embedder"):
        return True
    prompts = family.prompts(config, torch.device("meta"), lambda _: {})
    return prompts is not None and prompts.guides


def _levels(files: Folder, pipeline: Pipeline) -> NoiseLevels:
    scheduler = files.config("scheduler", "scheduler_config.json")
    return noise_levels(
        *(scheduler, files.component("scheduler"), pipeline.scheduler), pixels=files.decoder is None, walked=pipeline.flow
    )


def _network(files: Folder, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    import diffusers

    network: nn.Module = read_weights_to(device, getattr(diffusers, config["_class_name"]), files, files.network, dtype=dtype)
    return network.eval().requires_grad_(False)


def _decoder(files: Folder, pipeline: Pipeline, channels: int, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The autoencoder's decoder, or none for a model that denoises pixels, which have so many channels."""
    import diffusers

    component = files.decoder
    if component is None:
        return Pixels(channels)
    class_name = str(files.component(component))
    if dtype == torch.float16 and files.component("text_encoder_2") and files.network == "unet":
        # Stable Diffusion XL's overflows; its pipeline upcasts unless told otherwise, and no other reads the setting
        upcast = files.config(component).get("force_upcast", defaults(class_name).get("force_upcast"))
        dtype = WIDER[dtype] if upcast else dtype

    def read(dtype: torch.dtype) -> Any:
        return read_weights_to(device, getattr(diffusers, class_name), files, component, dtype=dtype)

    vae, overflowed = read(dtype), False
    if device.type == "meta":
        return Autoencoder(vae.eval().requires_grad_(False))
    while (wider := WIDER.get(vae.dtype)) and not all(weight.isfinite().all() for weight in vae.state_dict().values()):
        log.warning("%s has weights that %s cannot hold: it runs in %s", component, type_name(vae.dtype), type_name(wider))
        vae, overflowed = read(wider), True
    vae.register_to_config(**dict.fromkeys(pipeline.decoder))
    return Autoencoder(vae.eval().requires_grad_(False), overflowed)


def _prompts(files: Folder, plan: _Plan, size: tuple[int, int], places: _Places, dtype: torch.dtype) -> Prompts:
    """How this model understands prompts. size: (height, width) of its images in pixels."""
    if texts := text_prompts(files, plan.config, size, places.texts, dtype):
        return texts
    if files.component("class_embedder"):
        return _table_prompts(files, plan.config, places.network, dtype)
    return plan.family.prompts(plan.config, places.network, partial(_class_names, files)) or NoPrompts()


def _table_prompts(files: Folder, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> ClassPrompts:
    """Classes whose embeddings stand in a table, as latent diffusion has them."""
    table = _class_table(files).to(device, dtype)
    refuse_width(config, table.shape[1], "class_embedder")
    null = files.config("class_embedder").get("null_class", len(table) - 1)  # latent diffusion adds it as the last row
    if type(null) is not int or not 0 <= null < len(table):
        message = f"null_class of class_embedder must be between 0 and {len(table) - 1}, got {null!r}"
        raise Unsupported(message, param="model")
    return ClassPrompts(len(table), device, table, null, _class_names(files, len(table)))


def _class_names(files: Folder, classes: int) -> dict[str, int]:
    """Word to class number, from the `id2label` of model_index.json. Raises `Unsupported` where it is no such table."""
    labels = files.index.get("id2label") or {}
    try:
        names = {str(word): int(number) for number, word in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Unsupported(f"id2label must give words to class numbers: {error}", param="model") from error
    for word, number in names.items():
        if not 0 <= number < classes:
            raise Unsupported(f"id2label names class {number} ({word}), the last one is {classes - 1}", param="model")
    return names


def _class_table(files: Folder) -> Tensor:
    """The one tensor (classes, dim) of a class embedder's safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    (file,) = (file for name, file in files.files("class_embedder").items() if name.endswith(".safetensors"))
    try:
        tensors = list(load_file(file).values())
    except SafetensorError as error:
        raise Unsupported(f"the weights of class_embedder cannot be read: {reason(error)}", param="model") from error
    if len(tensors) != 1 or tensors[0].ndim != 2:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise Unsupported(f"class_embedder must hold one tensor (classes, dim), got {shapes}", param="model")
    return tensors[0]


def _device(name: str, param: str = "device") -> torch.device:
    """Raises `InvalidInput` for a device that torch does not know, or on which it cannot compute here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"torch knows no device {name!r}", param=param) from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise InvalidInput(f"{name} was asked for, but torch sees no such CUDA device", param=param)
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # meta computes nothing, others are not in this build
        raise InvalidInput(f"torch cannot compute on {name} here; say cpu or cuda", param=param) from error
    return device
