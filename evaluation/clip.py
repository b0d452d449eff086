"""CLIP as feature extractor: any transformers CLIP folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from engine.config import reason
from engine.fingerprint import digest_of_files
from engine.folder import tokenizer_files
from engine.stored_file import read_object, refuse_unusable
from engine.weight_files import TRANSFORMERS, choose_weights
from engine.weights import shown
from evaluation.features import Extractor, Features
from registry.errors import FlexiError, NotFound, Unsupported

BATCH = 64  # images or texts in one call: bounds memory


class Clip(Extractor):
    """Projected features of a transformers CLIP folder, in float32. Images of another shape are resized to its square.

    `name` has a digest of what is read: the same files are the same features, whatever the folder or a variant of the weights
    is called.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Raises `NotFound` when the folder holds no CLIP model, `Unsupported` when it holds another or a broken one."""
        root = Path(folder)
        if not (root / "preprocessor_config.json").is_file():
            raise NotFound(f"{root} is not a CLIP folder (no preprocessor_config.json)", param="features")
        model_type = read_object(root / "config.json", "features").get("model_type")
        if model_type != "clip":
            raise Unsupported(f"{root} must hold a CLIP model, its config.json says {model_type!r}", param="features")
        scaling = read_object(root / "preprocessor_config.json", "features")
        try:
            mean, std = (torch.tensor(scaling[key], device=device).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            message = f"image_mean and image_std of {root} must be three numbers each: {reason(error)}"
            raise Unsupported(message, param="features") from error
        import transformers

        transformers.utils.logging.disable_progress_bar()
        try:
            files = _files(root)
            with shown(files) as folder:
                model, report = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
                self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        except FlexiError as error:
            raise type(error)(error.text, param="features") from error
        except Exception as error:  # every file format has its own
            raise Unsupported(f"{root} cannot be read: {reason(error)}", param="features") from error
        if report["missing_keys"]:  # transformers would draw them at random
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise Unsupported(f"the weights in {root} lack {missing}", param="features")
        read = {**files, "preprocessor_config.json": root / "preprocessor_config.json"}
        self.name = f"clip:{digest_of_files(dict(sorted(read.items())))[:8]}"
        self.device, self.mean, self.std = device, mean, std
        self.model = model.to(device).eval()
        self.size = int(self.model.config.vision_config.image_size)
        self.length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    @override
    @torch.inference_mode()
    def images(self, images: Tensor) -> Features:
        features = []
        for batch in images.split(BATCH):
            fitting = batch.to(self.device)
            if fitting.shape[-2:] != (self.size, self.size):
                fitting = functional.interpolate(fitting, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
            features.append(_array(self.model.get_image_features(pixel_values=(fitting - self.mean) / self.std)))
        return np.concatenate(features)

    @override
    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Features | None:
        if not any(prompts):
            return None  # an unconditional model
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        batches = zip(tokens.input_ids.split(BATCH), tokens.attention_mask.split(BATCH), strict=True)
        return np.concatenate(
            [_array(self.model.get_text_features(input_ids=ids, attention_mask=mask)) for ids, mask in batches]
        )


def _files(root: Path) -> dict[str, Path]:
    """What is read of a CLIP folder: configuration, tokenizer, weights. Raises `NotFound` and `Unsupported`."""
    weights = choose_weights(root, "CLIP", TRANSFORMERS)
    files = {"config.json": root / "config.json", **tokenizer_files("the tokenizer of CLIP", root), **weights.files}
    for file in files.values():
        refuse_unusable(file, "features")
    return files


def _array(features: object) -> Features:
    """Projected features (n, d) as float64 on the CPU.

    transformers 5 wraps the projected features in an output object, earlier versions return the tensor itself.
    """
    tensor = getattr(features, "pooler_output", features)
    assert isinstance(tensor, Tensor)
    return tensor.cpu().numpy().astype(np.float64)
