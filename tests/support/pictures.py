"""What image files say: their levels and texts. ISA-L may write the same ones as other bytes, as it did once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import ExifTags, Image


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def contents(images: Iterable[str]) -> list[tuple[bytes, dict[str, str], dict[int, object]]]:
    """Of each image: its levels, a PNG's texts, and EXIF."""
    files = [opened(image) for image in images]
    return [
        (np.asarray(file).tobytes(), getattr(file, "text", {}), file.getexif().get_ifd(ExifTags.IFD.Exif)) for file in files
    ]
