"""InceptionV3 as feature extractor: the features that published FID numbers are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from engine.config import reason
from evaluation.features import Extractor, Features
from registry.errors import Unsupported

BATCH = 64  # images in one call: bounds memory
LAYER = "2048"  # the last pooling, which FID is defined on


class Inception(Extractor):
    """torch-fidelity's InceptionV3, numerically that of the first FID code: images are rounded to 8 bits, resized as there.

    The weights are converted from TensorFlow: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, which is
    pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`. It reads no texts, so there is no CLIP score.
    """

    name = "inception"

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        """Raises `Unsupported` when torch-fidelity cannot be imported, or for a file of something else."""
        family = _family()
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity itself would run what a pickle says
            network = family(self.name, [LAYER], feature_extractor_weights_path=str(weights))
        except Exception as error:  # of the file system, of pickle, of torch
            raise Unsupported(
                f"{weights} is neither a CLIP folder nor a file of FID's InceptionV3 weights: {reason(error)}",
                param="features",
            ) from error
        self.device, self.network = device, network.to(device).eval()

    @override
    @torch.inference_mode()
    def images(self, images: Tensor) -> Features:
        batches = ((batch.to(self.device) * 255).round().to(torch.uint8) for batch in images.split(BATCH))
        features = torch.cat([self.network(batch)[0].cpu() for batch in batches]).numpy().astype(np.float64)
        features[~images.flatten(1).isfinite().all(1).numpy()] = np.nan  # 8 bits cannot say it
        return features

    @override
    def texts(self, prompts: Sequence[str]) -> Features | None:
        return None


def _family() -> Any:
    """torch-fidelity's class. Raises `Unsupported` where it cannot be imported."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        message = f"Inception features need torch-fidelity: pip install 'torch-fidelity>=0.4' ({reason(error)})"
        raise Unsupported(message, param="features") from error
    except RuntimeError as error:  # torchvision, made for another build of torch
        message = f"torch-fidelity cannot be imported, torch and torchvision must be of one build: {reason(error)}"
        raise Unsupported(message, param="features") from error
    return FeatureExtractorInceptionV3
