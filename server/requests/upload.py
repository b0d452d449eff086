"""Images that clients send: decoded within bounds, whatever they are."""

from __future__ import annotations

import hashlib
import io
import warnings
from base64 import b64decode
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from registry.errors import InvalidInput
from server.request_fields import MAX_BASE64, MAX_UPLOAD

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16 * 2**20
MAX_SIDE = 16384
OPAQUE_FROM = 128  # of 255: what is less is transparent


@dataclass(frozen=True, eq=False)
class Upload:
    """A decoded file, upright. pixels (H, W, 3), uint8; clear (H, W), bool: where it is transparent, None where it is nowhere.

    digest: SHA-256 of the file.
    """

    pixels: NDArray[np.uint8]
    clear: NDArray[np.bool_] | None
    digest: str

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]


def decoded(text: str, field: str) -> Upload:
    """Of a file in base64, or a data: URL of one. Raises `InvalidInput` naming the field and what is wrong with it."""
    head, comma, rest = text.partition(",")
    if comma:
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise InvalidInput("must be base64, or a data: URL in base64", param=field)
        text = rest
    elif text[:8].lower().startswith(("http:", "https:", "file:")):
        raise InvalidInput("this server fetches nothing: send the file itself, in base64 or as a data: URL", param=field)
    if len(text) > MAX_BASE64:
        raise _too_large(field)
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise InvalidInput("is not valid base64", param=field) from None
    return opened(data, field)


def opened(data: bytes, field: str) -> Upload:
    """Of a file. Raises as `decoded`."""
    if len(data) > MAX_UPLOAD:
        raise _too_large(field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are refused below and odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse_size(image, field)  # of the header: nothing is decoded yet
                if getattr(image, "n_frames", 1) > 1:
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
    return Upload(pixels, clear, hashlib.sha256(data).hexdigest())


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


def _too_large(field: str) -> InvalidInput:
    return InvalidInput(f"must be a file of at most {MAX_UPLOAD // 2**20} MiB", param=field)
