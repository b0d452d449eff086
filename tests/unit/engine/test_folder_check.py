"""A look at a folder without torch says what loading would say, and stops no folder that loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import model_folders
import pytest
from model_folders import change

from engine.folder_check import check
from engine.loading import load
from registry.errors import FlexiError

BUILDERS: dict[str, Callable[..., Path]] = {
    "sd": model_folders.sd,
    "sdxl": model_folders.sdxl,
    "ddpm": model_folders.ddpm,
    "ldm": model_folders.ldm,
    "classes": model_folders.classes,
    "labels": model_folders.labels,
}


def an_unknown_block(root: Path) -> None:
    change(root / "unet" / "config.json", down_block_types=["DownBlock2D", "FancyBlock2D"])


def another_decoder(root: Path) -> None:
    change(root / "model_index.json", vae=["diffusers", "AutoencoderOobleck"])


def a_foreign_pipeline(root: Path) -> None:
    controlnet = ["diffusers", "ControlNetModel"]
    change(root / "model_index.json", _class_name="StableDiffusionControlNetPipeline", controlnet=controlnet)


def no_weights(root: Path) -> None:
    (root / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def a_pointer(root: Path) -> None:
    (root / "unet" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def no_folder(root: Path) -> None:
    shutil.rmtree(root)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_loads_passes(tmp_path: Path, tiny_config: Mapping[str, Any], family: str) -> None:
    takes_a_unet = family in ("sd", "sdxl", "classes")
    check(BUILDERS[family](tmp_path / family, *[tiny_config] * takes_a_unet))


@pytest.mark.parametrize("spoil", [an_unknown_block, another_decoder, a_foreign_pipeline, no_weights, a_pointer, no_folder])
def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = model_folders.emoji(tmp_path / "emoji64")
    spoil(folder)
    with pytest.raises(FlexiError) as early:
        check(folder)
    with pytest.raises(FlexiError) as late:
        load(folder)
    assert early.value.message == late.value.message
