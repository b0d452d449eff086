"""Image features, and what is computed from them: Fréchet distance and CLIP score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from registry.errors import NotFound

Features = NDArray[np.float64]
BATCH = 64  # images or texts in one call: bounds memory


def frechet_distance(a: Features, b: Features) -> float:
    """|μ_a − μ_b|² + Tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) between samples (n, d) and (m, d) (Heusel et al. 2017, arXiv 1706.08500).

    With centred samples A, B the trace of the root is the nuclear norm of A Bᵀ / √((n−1)(m−1)): exact also where n < d, where
    a matrix root of singular covariances is not. Biased upwards for small samples: compare only equal n.
    """
    n, m = len(a), len(b)
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(centred_a @ centred_b.T, ord="nuc") / np.sqrt((n - 1) * (m - 1))
    spread = (centred_a**2).sum() / (n - 1) + (centred_b**2).sum() / (m - 1)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * root)


class Clip:
    """A transformers CLIP folder as feature extractor."""

    def __init__(self, folder: str | Path) -> None:
        """Raises `NotFound` when the folder holds no CLIP model."""
        root = Path(folder)
        if not (root / "preprocessor_config.json").is_file():
            raise NotFound(f"features: {root} is not a CLIP folder (no preprocessor_config.json)", param="features")
        from transformers import CLIPModel, CLIPTokenizer

        self.model = CLIPModel.from_pretrained(root, dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(root)
        config = json.loads((root / "preprocessor_config.json").read_text())
        self.mean = torch.tensor(config["image_mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(config["image_std"]).view(1, 3, 1, 1)
        self.size = int(self.model.config.vision_config.image_size)

    @torch.inference_mode()
    def images(self, images: Tensor) -> Features:
        """Images (n, 3, H, W) in [0, 1] to projected features (n, d)."""
        parts = []
        for part in images.split(BATCH):
            fitting = part
            if part.shape[-1] != self.size:
                fitting = functional.interpolate(part, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
            parts.append(_array(self.model.get_image_features(pixel_values=(fitting - self.mean) / self.std)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Features:
        """Prompts to projected features (n, d)."""
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        parts = zip(tokens.input_ids.split(BATCH), tokens.attention_mask.split(BATCH), strict=True)
        return np.concatenate([_array(self.model.get_text_features(input_ids=ids, attention_mask=mask)) for ids, mask in parts])


def clip_score(images: Features, texts: Features) -> float:
    """100 · mean cosine of each image with its own prompt (Hessel et al. 2021, arXiv 2104.08718, without the clipping)."""
    cosine = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    return float(100 * cosine.mean())


def _array(features: object) -> Features:
    """transformers 5 wraps the projected features in an output object, earlier versions return the tensor itself."""
    tensor = getattr(features, "pooler_output", features)
    assert isinstance(tensor, Tensor)
    return tensor.numpy().astype(np.float64)
