"""How a folder's tokenizers and text encoders are loaded, and which prompts they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.config import reason
from engine.folder import TOKENIZERS, Folder
from engine.mixed_prompts import FluxPrompts, SD3Prompts
from engine.prompts import Prompts
from engine.t5_prompts import T5Prompts, T5Text
from engine.text_layouts import FLUX, PIXART, SD3, t5_tokens, text_layout
from engine.text_prompts import TextPrompts, TwoTextPrompts
from engine.weights import read_weights, shown, without_weights
from registry.errors import FlexiError, Unsupported


def text_prompts(
    files: Folder, config: Mapping[str, Any], size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Prompts | None:
    """Of a folder whose components were found to fit; None without a text encoder. size: (height, width) of images in pixels.

    config: the network's. Raises `NotFound` for what is not there, `Unsupported` for what does not fit or cannot be read.
    """
    layout = text_layout(files)

    def clip(suffix: str, penultimate: bool = False) -> TextPrompts:
        return _clip(files, suffix, device, dtype, penultimate)

    def t5(masked: bool = False) -> T5Text:
        return T5Text(*_t5(files, layout.t5, device, dtype), t5_tokens(files), masked)

    if layout is PIXART:
        return T5Prompts(t5(masked=True), size if config["use_additional_conditions"] else None)
    if layout is FLUX:
        return FluxPrompts(clip(""), t5(), bool(config["guidance_embeds"]))
    if layout is SD3:
        both, last = _both_clips(files, device, dtype), t5() if files.component(layout.t5) else None
        return SD3Prompts(*both, last, t5_tokens(files), int(config["joint_attention_dim"]))
    if files.component("text_encoder_2"):
        zeros = bool(files.index.get("force_zeros_for_empty_prompt", True))
        return TwoTextPrompts(*_both_clips(files, device, dtype), size, zeros)
    return clip("") if files.component("text_encoder") else None


def _both_clips(files: Folder, device: torch.device, dtype: torch.dtype) -> tuple[TextPrompts, TextPrompts]:
    """Whose last but one hidden states are looked at together."""
    first, second = (_clip(files, suffix, device, dtype, penultimate=True) for suffix in ("", "_2"))
    if first.tokens != second.tokens:
        message = f"tokenizer and tokenizer_2 must cut at the same length, got {first.tokens} and {second.tokens}"
        raise Unsupported(message, param="model")
    return first, second


def _clip(files: Folder, suffix: str, device: torch.device, dtype: torch.dtype, penultimate: bool) -> TextPrompts:
    """A tokenizer and the text encoder that fits it; `suffix` is "" for the first pair and "_2" for the second."""
    tokenizer = _tokenizer(files, f"tokenizer{suffix}", "CLIPTokenizer")
    encoder = _encoder(files, f"text_encoder{suffix}", device, dtype)
    limits = {"max_position_embeddings": tokenizer.model_max_length, "vocab_size": len(tokenizer)}
    for field, value in limits.items():
        limit = getattr(encoder.config, field)
        if not 1 <= value <= limit:
            what = "model_max_length" if field == "max_position_embeddings" else "number of words"
            message = f"{what} of tokenizer{suffix} must be between 1 and {limit}, {field} of its encoder, got {value}"
            raise Unsupported(message, param="model")
    return TextPrompts(tokenizer, encoder, penultimate=penultimate)


def _t5(files: Folder, component: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A tokenizer, and the T5 encoder that knows its words."""
    name = TOKENIZERS[component]
    tokenizer, encoder = _tokenizer(files, name, "T5Tokenizer"), _encoder(files, component, device, dtype)
    if not 1 <= len(tokenizer) <= encoder.config.vocab_size:
        limit = f"between 1 and {encoder.config.vocab_size}, vocab_size of its encoder"
        raise Unsupported(f"number of words of {name} must be {limit}, got {len(tokenizer)}", param="model")
    return tokenizer, encoder


def _tokenizer(files: Folder, name: str, kind: str) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        with shown(files.files(name)) as folder:
            return getattr(transformers, kind).from_pretrained(folder)
    except FlexiError:
        raise
    except Exception as error:  # of several libraries
        raise Unsupported(f"{name} cannot be read: {reason(error)}", param="model") from error


def _encoder(files: Folder, component: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A text encoder in this type, but for the weights that its class keeps in float32 where it is float16 (T5's `wo`)."""
    import transformers

    family = getattr(transformers, str(files.component(component)))
    read = without_weights if device.type == "meta" else read_weights
    return read(family, files, component, dtype=dtype).to(device).eval()
