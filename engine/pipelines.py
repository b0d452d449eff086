"""The pipeline class that a folder names: what diffusers mends at load for it, and what of the folder nobody runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine import text_layouts as layouts
from engine.components import NETWORKS
from engine.flow_pipeline import PLAINLY, Walked
from engine.folder import Folder
from engine.guidance import USUAL_CLASSES, USUAL_EMBEDDED, USUAL_FLUX
from engine.notice import Notice
from registry.errors import Unsupported

RUN = {
    *("unet", "transformer", "vae", "vqvae", "scheduler"),
    *("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "class_embedder"),
}
# Components that change no image made of a text alone: an image encoder and its preparation are for pictures as prompts.
HARMLESS = {"safety_checker", "feature_extractor", "image_encoder"}
PER_CHANNEL, SHIFT = ("latents_mean", "latents_std"), "shift_factor"
OLD_UNETS = (0, 9)  # diffusers releases before this one wrote a wrong sample_size


@dataclass(frozen=True)
class Pipeline:
    """A diffusers pipeline class whose images are made here.

    scheduler: what its constructor sets in the configuration of its scheduler. flow: what it hands to one of flow matching.
    decoder: what it does not look at in the configuration of its autoencoder. old_size: what it takes a smaller `sample_size`
    for, in latent pixels, where the UNet was saved before diffusers 0.9. guidance: the scale that its call has by default.
    """

    name: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    decoder: tuple[str, ...] = (*PER_CHANNEL, SHIFT)
    old_size: int | None = None
    flow: Walked = PLAINLY
    guidance: float = 7.5

    def mended(self, unet: Mapping[str, Any]) -> dict[str, Any]:
        """A network's configuration as this pipeline understands it."""
        size = unet.get("sample_size")
        outdated = self.old_size is not None and type(size) is int and size < self.old_size
        return {**unet, "sample_size": self.old_size} if outdated and _is_old(unet) else dict(unet)


TEXT = Pipeline("StableDiffusionPipeline", {"clip_sample": False, "steps_offset": 1}, old_size=64)
TWO_TEXTS = Pipeline("StableDiffusionXLPipeline", decoder=(SHIFT,), guidance=5.0)
LATENT = Pipeline("LDMPipeline", guidance=USUAL_CLASSES)
PIXEL = Pipeline("DDIMPipeline", guidance=USUAL_CLASSES)
CONSISTENCY = Pipeline("LatentConsistencyModelPipeline", guidance=USUAL_EMBEDDED)
DIT = Pipeline("DiTPipeline", guidance=4.0)
PIXART = Pipeline("PixArtAlphaPipeline", guidance=4.5)
SIGMA = Pipeline("PixArtSigmaPipeline", guidance=4.5)
SD3 = Pipeline("StableDiffusion3Pipeline", decoder=PER_CHANNEL, flow=Walked(by_size=True), guidance=7.0)
FLUX = Pipeline("FluxPipeline", decoder=PER_CHANNEL, flow=Walked(evenly=True, by_size=True), guidance=USUAL_FLUX)
# They start from an image or from noise; without a mask an inpainting UNet paints everywhere.
_FROM_IMAGES = (
    Pipeline("StableDiffusionImg2ImgPipeline", TEXT.scheduler, old_size=64),
    Pipeline("StableDiffusionInpaintPipeline", {"steps_offset": 1}, old_size=64),
    Pipeline("StableDiffusionXLImg2ImgPipeline", decoder=(SHIFT,), guidance=5.0),
    Pipeline("StableDiffusionXLInpaintPipeline", decoder=(SHIFT,)),
)
_TWO_STREAMS = (("StableDiffusion3", SD3), ("Flux", FLUX))
_OF_TEXTS = ((layouts.PIXART, PIXART), (layouts.SD3, SD3), (layouts.FLUX, FLUX))
_PLAIN = (
    TEXT,
    TWO_TEXTS,
    LATENT,
    PIXEL,
    CONSISTENCY,
    DIT,
    PIXART,
    SIGMA,
    SD3,
    FLUX,
    *(replace(pipeline, name=f"{start}{way}Pipeline") for start, pipeline in _TWO_STREAMS for way in ("Img2Img", "Inpaint")),
    *(replace(PIXEL, name=name) for name in ("DDPMPipeline", "PNDMPipeline")),
    *_FROM_IMAGES,
)
SERVED = {pipeline.name: pipeline for pipeline in _PLAIN}


def pipeline_of(files: Folder) -> Pipeline:
    """The pipeline whose images a folder's components make: the one that it names, else the plain one with these components."""
    name = class_name(files)
    if name in SERVED:
        return SERVED[name]
    if name == "LatentConsistencyModelImg2ImgPipeline":
        return CONSISTENCY
    if files.network == "transformer":
        return next((pipeline for layout, pipeline in _OF_TEXTS if layouts.text_layout(files) is layout), DIT)
    if files.component("text_encoder_2"):
        return TWO_TEXTS
    if files.component("text_encoder"):
        return TEXT
    return LATENT if files.component("vae") or files.component("vqvae") else PIXEL


def refuse_foreign(files: Folder) -> None:
    """Raises `Unsupported` for a pipeline whose images mean nothing without a component that is not run here, naming it."""
    name = class_name(files)
    for component in _beside(files):
        if name is not None and name not in SERVED:  # those ignore it in diffusers too
            message = f"model_index.json names {name}, whose images are made with {component}, which this version does not run"
            raise Unsupported(message, param="model")


def notices(files: Folder) -> list[Notice]:
    """What the folder asks for and nobody here does."""
    name, served, found = class_name(files), pipeline_of(files), []
    if name is not None and name not in SERVED:
        message = f"model_index.json names {name}; it is served as {served.name} would: from noise, with nothing but "
        found.append(Notice("pipeline_served_plainly", f"{message}guidance by the prompt"))
    required = name is not None and served in (TEXT, CONSISTENCY, *_FROM_IMAGES[:2])  # diffusers' default
    if files.component("safety_checker") or files.index.get("requires_safety_checker", required):
        has = "has a safety checker" if files.component("safety_checker") else "requires a safety checker"
        message = f"the model's folder {has}, which is not run: nobody here looks at images before they go out"
        found.append(Notice("safety_checker_not_run", message))
    if files.index.get("add_watermarker"):
        found.append(Notice("watermark_not_added", "model_index.json asks for an invisible watermark, which is not added"))
    for component in _beside(files):
        what = f"{component} ({files.component(component)})"
        found.append(Notice("component_not_run", f"model_index.json names the component {what}, which is not run"))
    return found


def _beside(files: Folder) -> list[str]:
    """The components that would make or guide images, and that nobody runs here."""
    named = (name for name in files.index if not name.startswith("_") and files.component(name))
    other_network = {name for name in NETWORKS if name != files.network}  # of a folder with two, one is run
    return sorted(set(named) - (RUN - other_network) - HARMLESS)


def class_name(files: Folder) -> str | None:
    """The pipeline class that a folder names. The JAX pipelines have the components of those that they are named after."""
    name = files.index.get("_class_name")
    if isinstance(name, list) and name:  # a pipeline of somebody's own: its file and its class
        name = name[-1]
    return name.removeprefix("Flax") if isinstance(name, str) and name else None


def _is_old(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet was saved by a diffusers before 0.9; one that does not say is none."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(str(unet.get("_diffusers_version"))).release < OLD_UNETS
    except InvalidVersion:
        return False
