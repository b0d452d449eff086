"""A picture that somebody hands in: decoded within bounds, whatever it is."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.image_size import ImageSize
from registry.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP")
PHOTO = "MPO"  # what Pillow calls a JPEG with a preview or a second view behind it: the first picture is meant
MAX_PIXELS = 16 * 2**20
MAX_SIDE = 16384
OPAQUE_FROM = 128  # of 255: what is less is transparent
LIGHT = 128  # of 255: what is lighter in a mask is painted


@dataclass(frozen=True, eq=False)
class InputImage:
    """A decoded file, upright. pixels (H, W, 3), uint8; clear (H, W), bool: where it is transparent, None where it is nowhere.

    digest: SHA-256 of the file.
    """

    pixels: NDArray[np.uint8]
    clear: NDArray[np.bool_] | None
    digest: str

    @property
    def size(self) -> ImageSize:
        """In pixels."""
        return ImageSize(*self.pixels.shape[:2])

    def painted(self, mask: InputImage | None) -> NDArray[np.bool_] | None:
        """Where it is to be painted anew, (H, W): where it, or the mask if there is one, is transparent; of a mask without
        transparency where that is light. None is everywhere.

        Raises `InvalidInput` with the param `mask` for one of another size, or that paints nothing.
        """
        if mask is None:
            return self.clear
        if mask.size != self.size:
            raise InvalidInput(f"must be as large as the image, {self.size}, got {mask.size}", param="mask")
        painted = np.asarray(Image.fromarray(mask.pixels).convert("L")) >= LIGHT if mask.clear is None else mask.clear
        if not painted.any():
            raise InvalidInput("paints nothing: what is white, or transparent, is painted anew", param="mask")
        return painted


def opened(data: bytes, field: str) -> InputImage:
    """Of a file. Raises `InvalidInput` naming the field and what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are refused below and odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse_size(image, field)  # of the header: nothing is decoded yet
                if image.format != PHOTO and getattr(image, "n_frames", 1) > 1:
                    raise InvalidInput("must be one picture, not an animation", param=field)
                image.load()
                upright = ImageOps.exif_transpose(image)
                pixels, clear = _levels(upright)
    except InvalidInput:
        raise
    except UnidentifiedImageError:
        known = " or ".join((", ".join(FORMATS[:-1]), FORMATS[-1]))
        raise InvalidInput(f"must be a file in {known}", param=field) from None
    except Image.DecompressionBombError:
        raise InvalidInput(f"must have at most {MAX_PIXELS} pixels", param=field) from None
    except Exception as error:  # of a dozen decoders
        raise InvalidInput("is cut short or damaged", param=field) from error
    return InputImage(pixels, clear, hashlib.sha256(data).hexdigest())


def _levels(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Colours, and where they are transparent."""
    if image.mode.startswith(("I", "F")):  # grey of 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None
    levels = np.asarray(image.convert("RGBA"))
    clear = levels[..., 3] < OPAQUE_FROM
    return np.ascontiguousarray(levels[..., :3]), clear if clear.any() else None


def _refuse_size(image: Image.Image, field: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"at most {MAX_PIXELS} pixels, and {MAX_SIDE} a side"
        raise InvalidInput(f"must have {limit}, got {width}x{height}", param=field)
