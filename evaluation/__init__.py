"""Image features, and what is computed from them: distances between samples of images, and the CLIP score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from evaluation.clip import Clip
from evaluation.distance import Features, Gaussian, clip_score, frechet_distance, gaussian, psnr
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


class Extractor(Protocol):
    """Turns images into the features that distances are measured in."""

    @property
    def name(self) -> str:
        """What a report calls these features: distances compare only within one name."""

    def images(self, images: Tensor) -> Features:
        """Images (n, 3, H, W) in [0, 1], on the CPU, to features (n, d). Not finite where an image is not."""

    def texts(self, prompts: Sequence[str]) -> Features | None:
        """Prompts to features of the same space (n, d); None where no text is read, or where none of them says anything."""


def extractor(path: str | Path, device: str = "cpu") -> Extractor:
    """The extractor that a path means: a transformers CLIP folder, or the file of FID's InceptionV3 weights.

    Raises `NotFound` for what is not there, `Unsupported` for what is neither, all with param="features".
    """
    place = Path(path)
    if place.is_dir():
        return Clip(place, device)
    if place.is_file():
        return Inception(place, device)
    message = f"{place} is not there; name a CLIP folder, or a file of FID's InceptionV3 weights"
    raise NotFound(message, param="features")
