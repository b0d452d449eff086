"""What image files say: their levels and texts. ISA-L may write the same ones as other bytes, as it did once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from PIL import ExifTags, Image


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def contents(images: Iterable[str]) -> list[tuple[object, ...]]:
    """Of each image: its format, size and mode, its levels, a PNG's texts, and EXIF."""
    return [
        (
            *(file.format, file.size, file.mode, file.tobytes()),
            *(getattr(file, "text", {}), file.getexif().get_ifd(ExifTags.IFD.Exif)),
        )
        for file in map(opened, images)
    ]
