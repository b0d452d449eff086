"""What a request starts from: its image and mask, decoded and brought to the size of what is to be made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.image_size import ImageSize
from engine.source import SourceImage, usual_strength
from server.api import AUTO, GenerateRequest
from server.batching.image_task import Edit
from server.requests.upload import decoded

SAME_ASPECT = 0.01  # a smaller change of the proportions is none


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
    picture = decoded(request.image, "image")
    mask = None if request.mask is None else decoded(request.mask, "mask")
    came = picture.size
    size = _nearest(came, sizes) if request.size in (None, AUTO) else ImageSize.parse(request.size)
    source = SourceImage.of(picture, mask, size, scale)
    strength = usual_strength(source) if request.strength is None else request.strength
    shape = mask or picture
    mask_digest = "" if source.painted is None else shape.digest
    key = hashlib.sha256(f"{picture.digest} {mask_digest} {size}".encode()).hexdigest()
    stretched = abs(came.width * size.height / (came.height * size.width) - 1) > SAME_ASPECT
    edit = Edit(source, strength, image_key=f"{picture.digest} {size}", key=key, image=picture.digest, mask=mask_digest)
    return Wished(edit, size, came if stretched else None)


def _nearest(came: ImageSize, sizes: Sequence[ImageSize]) -> ImageSize:
    """Of the sizes that there are the one of the nearest proportions, then of the nearest number of pixels."""

    def distance(size: ImageSize) -> tuple[float, float]:
        shape = np.log(came.width * size.height / (came.height * size.width))
        return round(abs(float(shape)), 3), abs(float(np.log(came.pixels / size.pixels)))

    return min(sizes, key=distance)
