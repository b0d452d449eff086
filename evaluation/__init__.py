"""Image features, and what is computed from them: distances between samples of images, and the CLIP score."""

from __future__ import annotations

from pathlib import Path

from evaluation.clip import Clip
from evaluation.distance import Gaussian, clip_score, frechet_distance, gaussian, psnr
from evaluation.features import Extractor, Features
from evaluation.inception import Inception
from registry.errors import NotFound

__all__ = [
    "Clip",
    "Extractor",
    "Features",
    "Gaussian",
    "Inception",
    "clip_score",
    "extractor",
    "frechet_distance",
    "gaussian",
    "psnr",
]


def extractor(path: str | Path, device: str = "cpu") -> Extractor:
    """The extractor that a path means: a transformers CLIP folder, or the file of FID's InceptionV3 weights.

    Raises `NotFound` for what is not there, `Unsupported` for what is neither, all with param="features".
    """
    path = Path(path)
    if path.is_dir():
        return Clip(path, device)
    if path.is_file():
        return Inception(path, device)
    message = f"{path} is not there; name a CLIP folder, or a file of FID's InceptionV3 weights"
    raise NotFound(message, param="features")
