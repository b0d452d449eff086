"""PNG files that say how they were made."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


def png(pixels: Tensor, parameters: Mapping[str, object]) -> str:
    """A PNG file in base64. pixels (3, height, width), float in [0, 1]; each parameter becomes a text chunk."""
    info = PngInfo()
    for key, value in parameters.items():
        info.add_itxt(key, str(value))  # international text: a prompt may be in any language
    levels = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()
