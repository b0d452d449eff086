"""A small classifier as feature extractor: its features of images, and which class it takes them for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from engine.config import reason
from engine.stored_file import read_object, refuse_unusable
from evaluation.features import Extractor, Features
from registry.errors import NotFound, Unsupported

BATCH = 64  # images in one call: bounds memory
KIND = "glyph-classifier"  # what config.json says of such a folder
WEIGHTS = "model.safetensors"


class Network(nn.Module):
    """Grey images (n, 1, 32, 32) in [-1, 1] to features (n, d) and logits (n, classes).

    Four stages of two 3×3 convolutions, each with a group norm and SiLU; between stages the side is halved. Features are
    the means of the last stage's channels, normalised (layer norm), so that all dimensions weigh alike in a distance.
    """

    def __init__(self, classes: int, widths: Sequence[int] = (16, 32, 64, 96), groups: int = 8) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, width in zip((1, *widths), widths, strict=False):
            stages += [nn.MaxPool2d(2)] if before > 1 else []
            for inner in (before, width):
                stages += [nn.Conv2d(inner, width, 3, padding=1), nn.GroupNorm(groups, width), nn.SiLU()]
        self.body = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(self.body(images).mean((2, 3)))
        return features, self.head(features)


class Classifier(Extractor):
    """Features and classes by a `Network` from a folder: `config.json` (class names, widths, side) and its weights.

    Colours become their mean, other shapes are resized to its square. It reads no texts, so there is no CLIP score; accuracy
    takes its place. `name` has a digest of the weights: the same ones are the same in whatever folder.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Raises `NotFound` for what is not there, `Unsupported` for a configuration or weights that it cannot use."""
        root = Path(folder)
        config = read_object(root / "config.json", "features")
        if not is_classifier(config):
            raise Unsupported(
                f"model_type of {root} must be {KIND!r}, its config.json says {config.get('model_type')!r}", param="features"
            )
        self.labels, network, self.size = _built(config, root)
        if not (root / WEIGHTS).is_file():
            raise NotFound(f"{root} lacks {WEIGHTS}", param="features")
        refuse_unusable(root / WEIGHTS, "features")
        from safetensors.torch import load_file

        try:
            network.load_state_dict({name: weight.float() for name, weight in load_file(root / WEIGHTS).items()})
        except Exception as error:  # of safetensors, or of torch: other names or shapes
            raise Unsupported(f"the weights in {root} cannot be used: {reason(error)}", param="features") from error
        self.name = f"classifier:{hashlib.sha256((root / WEIGHTS).read_bytes()).hexdigest()[:8]}"
        self.device, self.network = device, network.to(device).eval()

    @override
    def images(self, images: Tensor) -> Features:
        return self._seen(images)[0]

    @override
    def texts(self, prompts: Sequence[str]) -> Features | None:
        return None

    @override
    def recognised(self, images: Tensor, prompts: Sequence[str]) -> NDArray[np.bool_] | None:
        numbers = {label: number for number, label in enumerate(self.labels)}
        wanted = np.array([numbers.get(prompt, -1) for prompt in prompts])
        return None if (wanted < 0).any() else np.asarray(self._seen(images)[1].argmax(1) == wanted)

    @torch.inference_mode()
    def _seen(self, images: Tensor) -> tuple[Features, Features]:
        """Features (n, d) and logits (n, classes), of one batch after the other."""
        parts = []
        for batch in images.split(BATCH):
            grey = batch.to(self.device).float().mean(1, keepdim=True) * 2 - 1
            if grey.shape[-2:] != (self.size, self.size):
                grey = functional.interpolate(grey, size=self.size, mode="bilinear", antialias=True)
            parts.append(self.network(grey))
        features, logits = (torch.cat(column).cpu().numpy().astype(np.float64) for column in zip(*parts, strict=True))
        return features, logits


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a folder's config.json is that of such a classifier."""
    return config.get("model_type") == KIND


def _built(config: dict[str, Any], root: Path) -> tuple[list[str], Network, int]:
    """Class names, network with random weights, side of its images. Raises `Unsupported` for another configuration."""
    try:
        labels = [str(label) for label in config["labels"]]
        side = int(config["image_size"])
        network = Network(len(labels), [int(width) for width in config["widths"]], int(config["groups"]))
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Unsupported(
            f"config.json of {root} must give labels, widths, groups and image_size: {reason(error)}", param="features"
        ) from error
    return labels, network, side
