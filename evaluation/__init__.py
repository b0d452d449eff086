"""Image features, and what is computed from them: distances between samples of images, and the CLIP score."""

from __future__ import annotations

from pathlib import Path

from engine.stored_file import read_object
from evaluation.classifier import Classifier, is_classifier
from evaluation.clip import Clip
from evaluation.distance import Gaussian, clip_score, frechet_distance, gaussian, psnr
from evaluation.features import Extractor, Features
from evaluation.inception import Inception
from registry.errors import NotFound

__all__ = [
    "Classifier",
    "Clip",
    "Extractor",
    "Features",
    "Gaussian",
    "Inception",
    "bundled",
    "clip_score",
    "extractor",
    "frechet_distance",
    "gaussian",
    "psnr",
]


def bundled(model: str | Path) -> Path:
    """Where a model's folder keeps an extractor of its own: `features` if that is there, else `clip`."""
    own = Path(model) / "features"
    return own if own.is_dir() else Path(model) / "clip"


def extractor(path: str | Path, device: str = "cpu") -> Extractor:
    """The extractor that a path means: a classifier's or a transformers CLIP's folder, or a file of FID's InceptionV3 weights.

    Raises `NotFound` for what is not there, `Unsupported` for what is none of these, all with param="features".
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        return (Classifier if config.is_file() and is_classifier(read_object(config, "features")) else Clip)(path, device)
    if path.is_file():
        return Inception(path, device)
    message = f"{path} is not there; name a classifier's folder, a CLIP folder, or a file of FID's InceptionV3 weights"
    raise NotFound(message, param="features")
