"""Image files that say how they were made, in the formats that clients may ask for."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from server.request_fields import LOSSLESS, FileFormat
from server.requests.png import png

UNDEFINED = b"\0" * 8  # EXIF's name for an encoding of UserComment that it has no name for: here UTF-8
FULL_COLOUR = 90  # per cent from which a JPEG keeps every pixel's colour, below that one in four: libvips draws the line there


@dataclass(frozen=True)
class ImageFormat:
    """The format that a request wants its images in, and their quality in per cent: 100 is what the format keeps at most.

    lossless: of a WebP, which then keeps every level whatever its quality; a PNG does so always, a JPEG cannot.
    """

    name: FileFormat = LOSSLESS
    quality: int = 100
    lossless: bool = False

    def file(self, levels: NDArray[np.uint8], parameters: Mapping[str, str]) -> bytes:
        """A file of an image. levels (H, W, 3).

        The parameters are text chunks of a PNG; in JPEG and WebP they are one JSON object in EXIF's UserComment. There is room
        for 65,000 bytes in UTF-8: two prompts of the longest, of characters that JSON writes with six, take 48,000.
        """
        if self.name == LOSSLESS:
            return png(levels, parameters)
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = (
            UNDEFINED + json.dumps(dict(parameters), ensure_ascii=False).encode()
        )
        file = io.BytesIO()
        Image.fromarray(levels).save(file, self.name, exif=exif, **self._options)
        return file.getvalue()

    @property
    def keeps_all(self) -> bool:
        """Whether a file holds every level as it is."""
        return self.name == LOSSLESS or (self.lossless and self.name == "webp")

    @property
    def _options(self) -> dict[str, int | bool]:
        """Of Pillow's encoders. A lossless WebP's `quality` would be the effort to make it small."""
        if self.name == "jpeg":
            return {"quality": self.quality, "subsampling": 0 if self.quality >= FULL_COLOUR else 2}
        if self.keeps_all:
            return {"lossless": True, "quality": 0, "method": 0}
        # WebP's method 0 takes a third of the time of its default, 4, for files that are a tenth larger at 80 per cent
        return {"quality": self.quality, "method": 0}

    def in_base64(self, levels: NDArray[np.uint8], parameters: Mapping[str, str]) -> str:
        """The same file in base64."""
        return b64encode(self.file(levels, parameters)).decode()
