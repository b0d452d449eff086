"""Features of real images: what generated ones may be held against, besides the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.config import reason
from evaluation.distance import Gaussian, gaussian
from evaluation.features import Extractor, Features
from evaluation.statistics import Statistics
from registry.errors import InvalidInput, NotFound

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
BATCH = 64  # pictures in memory at once


def real_gaussian(real: str | Path, extractor: Extractor, size: tuple[int, int]) -> Gaussian:
    """What distances are measured to: of a folder's pictures (`real_features`), or of a file of `Statistics`.

    Raises as `real_features` does, and `InvalidInput` for statistics of other features or another size.
    """
    path = Path(real)
    if path.is_file():
        return Statistics.read(path).fitting(extractor, size)
    return gaussian(real_features(path, extractor, size))


def real_features(folder: str | Path, extractor: Extractor, size: tuple[int, int]) -> Features:
    """Features (n, d) of all pictures in a folder and the folders in it, in the order of their paths.

    A picture is cut at its centre to the shape of `size` = (height, width), as a model draws it, and resized to it with
    antialiasing (bicubic, as in Parmar et al. 2022, arXiv 2104.11222); what is transparent becomes white. A
    `frechet_distance` to the features is biased by both numbers of images, and compares with no published FID unless features,
    pictures, numbers and resizing agree.

    Raises `NotFound` for a folder that is not there, `InvalidInput` naming a picture that cannot be read, or fewer than two.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFound(f"{root} is not a folder", param="real")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(files) < 2:
        known = ", ".join(sorted(SUFFIXES))
        raise InvalidInput(f"{root} must hold at least 2 pictures ({known}), got {len(files)}", param="real")
    batches = (files[start : start + BATCH] for start in range(0, len(files), BATCH))
    return np.concatenate([extractor.images(_pictures(batch, size)) for batch in batches])


def _pictures(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """The pictures as one tensor (n, 3, H, W) in [0, 1]."""
    return torch.stack([_picture(file, size) for file in files]).permute(0, 3, 1, 2).contiguous()


def _picture(file: Path, size: tuple[int, int]) -> Tensor:
    """One picture (H, W, 3) in [0, 1]. Raises `InvalidInput` naming a file that cannot be read."""
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode[0] in "IF":
                raise ValueError(f"mode {upright.mode}: more than 8 bits a channel")
            rgb = _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise InvalidInput(f"{file} cannot be read: {reason(error)}", param="real") from error
    fitting = ImageOps.fit(rgb, (size[1], size[0]), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(fitting, dtype=np.float32) / 255)


def _on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
