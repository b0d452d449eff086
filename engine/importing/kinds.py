"""What a single file is, seen from the names and shapes of its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.architectures import SD1, SD2, SDXL, Architecture
from engine.importing.tensor_file import TensorFile
from registry.errors import Unsupported

UNET, VAE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
KINDS: Mapping[int, tuple[str, Architecture]] = {  # by the width of the context that the UNet attends to
    768: ("Stable Diffusion 1", SD1),
    1024: ("Stable Diffusion 2", SD2),
    2048: ("Stable Diffusion XL", SDXL),
}
# Files that are something else: how the name of one of their tensors begins, ends or what is in it, and what they are.
FOREIGN: Mapping[str, str] = {
    "joint_blocks.": "Stable Diffusion 3, which has no UNet",
    "double_blocks.": "Flux, which has no UNet",
    "double_layers.": "AuraFlow, which has no UNet",
    "control_model.": "a ControlNet",
    "motion_modules.": "AnimateDiff, which makes videos",
    "edm_mean": "Playground v2.5, whose noise levels (EDM) the solvers here do not walk",
    "edm_vpred.": "CosXL, whose noise levels (EDM) the solvers here do not walk",
    "time_embed.cond_proj.": "a latent consistency model, whose UNet takes the guidance scale as an input",
    "model.diffusion_model.label_emb.weight": "an upscaler, whose UNet takes a level of noise",
    "embedder.model.visual.": "unCLIP, which draws after a picture",
    ".lora_down.": "a LoRA: give it as --lora, beside a checkpoint",
    ".lora_A.": "a LoRA: give it as --lora, beside a checkpoint",
    "_lora.down.": "a LoRA: give it as --lora, beside a checkpoint",
    ".lora.down.": "a LoRA: give it as --lora, beside a checkpoint",
    "hada_w1": "a LoHa (LyCORIS), which this version cannot add",
    "lokr_w": "a LoKr (LyCORIS), which this version cannot add",
}
# Files that hold one part of a model only, where nothing of UNET is in them: how the name of a tensor begins.
PARTS: Mapping[str, str] = {
    "down_blocks.": "a UNet alone, as diffusers saves it: import its folder",
    "input_blocks.": "a UNet alone: a whole checkpoint is needed, with text encoder and autoencoder",
    "encoder.": "an autoencoder: give it as --vae, beside a checkpoint",
    "decoder.": "an autoencoder: give it as --vae, beside a checkpoint",
    VAE: "an autoencoder: give it as --vae, beside a checkpoint",
    "text_model.": "a text encoder alone",
    "emb_params": "a textual inversion, which this version cannot add",
}
# By how many channels go into the UNet, where they are not the latent's four.
INPUTS: Mapping[int, str] = {
    9: "an inpainting model: its UNet also takes a mask and a picture",
    8: "a model that edits pictures by instruction: its UNet also takes a picture",
    7: "an upscaler: its UNet also takes a picture",
    5: "a model that draws after a depth map: its UNet also takes one",
}
REFINER = 1280  # width of its context
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass(frozen=True)
class Detected:
    """What a file is called, its sizes, and what it predicts; None where nothing in it says so.

    zero_snr: whether its last noise level is pure noise (arXiv 2305.08891). ema: whether it has averaged weights of the UNet.
    """

    name: str
    architecture: Architecture
    prediction: str | None
    zero_snr: bool
    ema: bool


def refuse_foreign(file: TensorFile) -> None:
    """Raises `Unsupported` saying what a file is that is no whole text-to-image checkpoint with a UNet of four channels."""
    names = file.shapes
    for part, what in FOREIGN.items():
        if any(part in name for name in names):
            raise Unsupported(f"{file.path} is {what}", param="source")
    if not any(name.startswith(UNET) for name in names):
        for start, what in PARTS.items():
            if any(name.startswith(start) for name in names):
                raise Unsupported(f"{file.path} is {what}", param="source")
        message = f"{file.path} is no Stable Diffusion checkpoint: none of its {len(names)} tensors is called {UNET}…"
        raise Unsupported(message, param="source")
    first = names.get(f"{UNET}input_blocks.0.0.weight", ())
    if len(first) != 4:
        message = f"{file.path} is no Stable Diffusion checkpoint: {UNET}input_blocks.0.0.weight is no convolution's"
        raise Unsupported(message, param="source")
    if first[1] != 4:
        what = INPUTS.get(first[1], f"a model whose UNet takes {first[1]} channels")
        raise Unsupported(f"{file.path} is {what}; this version imports UNets of 4 channels", param="source")


def detect(file: TensorFile) -> Detected:
    """Which of the published kinds a file is. Raises as `refuse_foreign` does, and for a kind that is none of `KINDS`."""
    refuse_foreign(file)
    width = next((shape[1] for name, shape in file.shapes.items() if name.endswith(".attn2.to_k.weight")), None)
    if width == REFINER:
        message = f"{file.path} is the refiner of Stable Diffusion XL, which goes on with another model's latents"
        raise Unsupported(message, param="source")
    if width is None or width not in KINDS:
        known = ", ".join(f"{number} ({name})" for number, (name, _) in KINDS.items())
        message = (
            f"{file.path} has a UNet that attends to a context {width} wide; known: {known}. --config FOLDER describes others"
        )
        raise Unsupported(message, param="source")
    name, architecture = KINDS[width]
    return Detected(name, architecture, prediction(file, name), "ztsnr" in file.shapes, has_ema(file))


def has_ema(file: TensorFile) -> bool:
    """Whether the file has averaged weights beside those that were trained last."""
    return any(name.startswith(f"{EMA}diffusion_model") for name in file.shapes)


def prediction(file: TensorFile, name: str) -> str | None:
    """`epsilon` or `v_prediction`, by the marks that trainers leave; Stable Diffusion 1 and XL were published with epsilon.

    Files of Stable Diffusion 2 with either are alike in all shapes: without a mark it is None.
    """
    said = file.metadata.get("modelspec.prediction_type")  # as kohya's and other trainers write it
    if "v_pred" in file.shapes or said in ("v", "v_prediction"):
        return "v_prediction"
    return "epsilon" if said == "epsilon" or name != KINDS[1024][0] else None
