"""What a request starts from: its image and mask, decoded and brought to the size of what is to be made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engine.image_size import ImageSize
from engine.source import SourceImage
from registry.errors import InvalidInput
from server.api import AUTO, GenerateRequest
from server.batching.image_task import Edit
from server.requests.upload import Upload, decoded

STRENGTH = 0.8  # where nobody says one: of diffusers' image-to-image pipeline
MASKED_STRENGTH = 1.0  # and of its inpainting pipeline: what is painted begins at pure noise
SAME_ASPECT = 0.01  # a smaller change of the proportions is none
LIGHT = 128  # of 255: what is lighter in a mask is painted


@dataclass(frozen=True)
class Wished:
    """An edit at its size. stretched: the size that the image came in, where its proportions had to be changed."""

    edit: Edit
    size: ImageSize
    stretched: ImageSize | None = None


def wished(request: GenerateRequest, sizes: Sequence[ImageSize], scale: int) -> Wished:
    """The edit that a request with an image asks for, at one of the sizes that there are, the first being the model's own.

    scale: how many pixels an element of a latent is wide and high, of which the first says what becomes of the element.
    Decodes, which takes a while. Raises `InvalidInput` naming the field.
    """
    assert request.image is not None, "only requests with an image ask for an edit"
    image = decoded(request.image, "image")
    painted, mask_digest = _painted(image, request.mask)
    came = ImageSize(image.height, image.width)
    size = _nearest(came, sizes) if request.size in (None, AUTO) else ImageSize.parse(request.size)
    own = np.asarray(_resized(Image.fromarray(image.pixels), size))
    if painted is not None:
        shown = _resized(Image.fromarray(painted.astype(np.uint8) * 255), size)
        painted = np.asarray(shown) >= LIGHT
        if not painted[::scale, ::scale].any():
            field = "image" if request.mask is None else "mask"
            raise InvalidInput(
                f"too little is to be painted anew: at {size} it is less than {scale} pixels wide or high", param=field
            )
    source = SourceImage(torch.from_numpy(own.copy()), None if painted is None else torch.from_numpy(painted.copy()))
    usual = STRENGTH if painted is None else MASKED_STRENGTH
    strength = usual if request.strength is None else request.strength
    key = hashlib.sha256(f"{image.digest} {mask_digest} {size}".encode()).hexdigest()
    stretched = abs(came.width * size.height / (came.height * size.width) - 1) > SAME_ASPECT
    edit = Edit(source, strength, image_key=f"{image.digest} {size}", key=key, image=image.digest, mask=mask_digest)
    return Wished(edit, size, came if stretched else None)


def _painted(image: Upload, mask: str | None) -> tuple[NDArray[np.bool_] | None, str]:
    """Where an image is to be painted anew, None for everywhere; and the digest of what says so."""
    if mask is None:
        return image.clear, "" if image.clear is None else image.digest
    given = decoded(mask, "mask")
    if given.pixels.shape != image.pixels.shape:
        got = f"{given.width}x{given.height}"
        raise InvalidInput(f"must be as large as the image, {image.width}x{image.height}, got {got}", param="mask")
    grey = np.asarray(Image.fromarray(given.pixels).convert("L"))
    painted = grey >= LIGHT if given.clear is None else given.clear
    if not painted.any():
        raise InvalidInput("paints nothing: what is white, or transparent, is painted anew", param="mask")
    return painted, given.digest


def _nearest(came: ImageSize, sizes: Sequence[ImageSize]) -> ImageSize:
    """Of the sizes that there are the one of the nearest proportions, then of the nearest number of pixels."""

    def distance(size: ImageSize) -> tuple[float, float]:
        shape = np.log(came.width * size.height / (came.height * size.width))
        return round(abs(float(shape)), 3), abs(float(np.log(came.pixels / size.pixels)))

    return min(sizes, key=distance)


def _resized(image: Image.Image, size: ImageSize) -> Image.Image:
    """As diffusers does it."""
    return (
        image if image.size == (size.width, size.height) else image.resize((size.width, size.height), Image.Resampling.LANCZOS)
    )
