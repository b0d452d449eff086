"""Which text encoders a folder has beside its network, and how many tokens of a prompt its T5 reads. Needs no torch.

A network's class says which they are. The number of tokens is an argument of diffusers' pipelines and stands in no folder:
`t5_tokens` has the rule. Padding up to it is part of what the network was trained on, so that another number makes another
picture of the same prompt, but for PixArt, which masks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.folder import Folder
from registry.errors import Unsupported

OLD_CLASS = "Transformer2DModel"  # of folders from before the kinds of it had classes of their own
SETTING = "max_sequence_length"  # in model_index.json, as the argument of diffusers' pipelines is called
MOST_T5_TOKENS = 512  # what T5 was trained on, and the most that Stable Diffusion 3's and FLUX's pipelines take


@dataclass(frozen=True)
class TextLayout:
    """encoders: of each component the class, and None where it may be missing. t5: the component that is a T5, if any.
    tokens: that it reads, and `other_tokens` in the case that `t5_tokens` has. behind_clip: whether they come behind CLIP's in
    the context, or are all of it.
    """

    encoders: Mapping[str, tuple[str | None, ...]]
    t5: str = ""
    tokens: int = 0
    other_tokens: int = 0
    behind_clip: bool = False


CLIP = TextLayout(
    {
        "text_encoder": ("CLIPTextModel", None),
        "text_encoder_2": ("CLIPTextModelWithProjection", None),
        "text_encoder_3": (None,),
    }
)
PIXART = TextLayout(
    {"text_encoder": ("T5EncoderModel",), "text_encoder_2": (None,), "text_encoder_3": (None,)},
    "text_encoder",
    tokens=120,
    other_tokens=300,  # of PixArt-Σ (arXiv 2403.04692)
)
SD3 = TextLayout(
    {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel", None),
    },
    "text_encoder_3",
    tokens=256,
    behind_clip=True,
)
FLUX = TextLayout(
    {"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("T5EncoderModel",), "text_encoder_3": (None,)},
    "text_encoder_2",
    tokens=512,
    other_tokens=256,  # of FLUX.1-schnell, by its makers
)
LAYOUTS: Mapping[str, TextLayout] = {
    "PixArtTransformer2DModel": PIXART,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
}


def text_layout(files: Folder) -> TextLayout:
    """Of a folder's network, by its class; of one that draws no texts, which refuses them itself, that of UNets."""
    name = files.component(files.network)
    if name == OLD_CLASS and files.component("text_encoder"):
        return PIXART  # of the other kind of them, DiT draws classes
    return LAYOUTS.get(str(name), CLIP)


def t5_tokens(files: Folder) -> int:
    """How many tokens T5 reads of a prompt, its end mark among them; shorter ones are padded to as many.

    `max_sequence_length` in model_index.json settles it, where it is there; diffusers ignores it. Else it is what the model
    was trained with: 120 of PixArt-α, 300 where the folder names PixArtSigmaPipeline; 256 of Stable Diffusion 3; 512 of FLUX,
    256 of a FLUX that embeds no guidance (schnell). These are the defaults of diffusers' pipelines, but for schnell, of which
    its makers say 256 and the pipeline 512. Stable Diffusion 3 without T5 has as many zeros instead, perhaps none.

    Raises `Unsupported` for a number that is none.
    """
    layout = text_layout(files)
    least = 1 if files.component(layout.t5) else 0
    said = files.index.get(SETTING)
    if said is not None:
        if type(said) is not int or not least <= said <= MOST_T5_TOKENS:
            message = f"must be a whole number from {least} to {MOST_T5_TOKENS} in model_index.json, got {said!r}"
            raise Unsupported(message, param=SETTING)
        return said
    if layout is PIXART and files.index.get("_class_name") == "PixArtSigmaPipeline":
        return layout.other_tokens
    if layout is FLUX and not files.config(files.network).get("guidance_embeds", False):
        return layout.other_tokens
    return layout.tokens
