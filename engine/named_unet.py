"""The network that a path names: its configuration, and at which latent size and length of the context it is meant to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.components import NETWORKS
from engine.config import attends, context_width, is_whole, sides
from engine.families.table import family_of
from engine.families.unet import UNET
from engine.folder import Folder
from engine.pipelines import pipeline_of
from engine.stored_file import read_object, readable
from engine.text_layouts import CLIP, LAYOUTS, t5_tokens
from registry.errors import InvalidInput, Unsupported

TEXT_TOKENS = 77  # CLIP's, when no text encoder says otherwise
CLASS_WIDTH = 512  # of latent diffusion's class embedding, which is one token; no published text encoder is as narrow


class NamedUNet(NamedTuple):
    """config: complete. latent (c, h, w). tokens: length of the context, 0 without one."""

    config: dict[str, Any]
    latent: tuple[int, int, int]
    tokens: int


def named_unet(path: Path, size: tuple[int, int] | None = None, tokens: int | None = None) -> NamedUNet:
    """Of a pipeline folder, a UNet's own folder or its config.json; `size` (height, width) and `tokens` go before what it says.

    Raises `InvalidInput` and `Unsupported` naming what is missing or cannot run.
    """
    with readable(path, "path"):
        config = _written_config(path)
        family = family_of(config)
        config = family.known(config)
        if (path / "model_index.json").is_file():
            config = pipeline_of(Folder(path)).mended(config)
        height, width = _latent_size(config, size)
        channels = int(config["in_channels"]) if family is UNET else family.channels(config)  # FLUX packs four into one
        return NamedUNet(config, (channels, height, width), _tokens(path, config, tokens))


def _written_config(path: Path) -> dict[str, Any]:
    """Of a pipeline folder, of a folder that is a network's own (or an old pipeline's root), or the file itself."""
    if not path.is_dir():
        return read_object(path, "path")
    inner = next((path / name for name in NETWORKS if (path / name).is_dir()), path)
    return read_object(inner / "config.json", "path")


def _tokens(path: Path, config: Mapping[str, Any], asked: int | None) -> int:
    """Length of the context, 0 for a network without one."""
    if asked is not None and asked < 1:
        raise InvalidInput(f"must be at least 1, got {asked}", param="tokens")
    if config["_class_name"] not in LAYOUTS and not (family_of(config) is UNET and attends(config)):
        if asked is not None:
            raise InvalidInput(f"this network attends to no context, got {asked}", param="tokens")
        return 0
    return asked if asked is not None else _published_tokens(path, config)


def _published_tokens(path: Path, config: Mapping[str, Any]) -> int:
    """A network's own configuration does not say it: what its text encoders do, else what its published kind has."""
    files = Folder(path) if (path / "model_index.json").is_file() else None
    layout = LAYOUTS.get(config["_class_name"], CLIP)
    if not layout.t5:
        return _clip_tokens(path, files, config)
    tokens = t5_tokens(files) if files else layout.tokens
    return tokens + _clip_tokens(path, files, config) if layout.behind_clip else tokens


def _clip_tokens(path: Path, files: Folder | None, config: Mapping[str, Any]) -> int:
    """As above of what CLIP, or a class embedder, has in the context."""
    encoder = path / "text_encoder" / "config.json"
    if encoder.is_file():
        limit = read_object(encoder, "path").get("max_position_embeddings", TEXT_TOKENS)
        if not is_whole(limit):
            field = "max_position_embeddings"
            raise Unsupported(f"must be a whole number of at least 1 in the text_encoder config, got {limit!r}", param=field)
        return int(limit)
    if files is not None and files.component("text_encoder"):
        return TEXT_TOKENS
    table = (path / "class_embedder").is_dir() or (files is not None and files.component("class_embedder"))
    return 1 if table or context_width(config) == CLASS_WIDTH else TEXT_TOKENS


def _latent_size(config: Mapping[str, Any], asked: tuple[int, int] | None) -> tuple[int, int]:
    if asked is not None:
        if min(asked) < 1:
            raise InvalidInput(f"must be at least 1 1, got {asked[0]} {asked[1]}", param="size")
        return asked
    if config["sample_size"] is None:
        raise InvalidInput("the config has no sample_size, say --size HEIGHT WIDTH", param="size")
    return sides(config["sample_size"])
