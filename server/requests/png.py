"""PNG files that say how they were made."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from engine.images import levels
from server.errors import GenerationFailed


def png(pixels: Tensor, parameters: Mapping[str, object]) -> str:
    """A PNG file in base64. pixels (3, height, width), float in [0, 1]; each parameter becomes a text chunk.

    Raises `GenerationFailed` for pixels that are not finite.
    """
    try:
        array = levels(pixels).numpy()
    except FloatingPointError as error:
        raise GenerationFailed(f"no picture can be made of this image: {error}") from error
    info = PngInfo()
    for key, value in parameters.items():
        info.add_itxt(key, str(value))  # international text: a prompt may be in any language
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()
