"""An image to start from: as it comes, and as the engine holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.condition import Condition
from engine.device import to_device
from engine.image_size import ImageSize
from engine.input_image import LIGHT, InputImage
from registry.errors import InvalidInput

if TYPE_CHECKING:
    from engine.model import Model
    from engine.program import Program


STRENGTH = 0.8  # where nobody says one: of diffusers' image-to-image pipeline
MASKED_STRENGTH = 1.0  # and of its inpainting pipeline: what is painted begins at pure noise


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image at the size of what is to be made of it, on the CPU.

    pixels (H, W, 3): levels, uint8. painted (H, W), bool: where it is to be painted anew; None is everywhere.
    """

    pixels: Tensor
    painted: Tensor | None = None

    @classmethod
    def of(cls, picture: InputImage, mask: InputImage | None, size: ImageSize, scale: int) -> SourceImage:
        """A picture, and where it is painted anew, resized as diffusers does it.

        scale: how many pixels an element of a latent is wide and high, of which the first says what becomes of the element.
        Raises `InvalidInput` naming what is wrong, `mask` or `image`.
        """
        pixels, painted = np.array(_resized(picture.pixels, size)), picture.painted(mask)
        if painted is None:
            return cls(torch.from_numpy(pixels))
        painted = np.array(_resized(painted.astype(np.uint8) * 255, size)) >= LIGHT
        if not painted[::scale, ::scale].any():
            message = f"too little is to be painted anew: at {size} it is less than {scale} pixels wide or high"
            raise InvalidInput(message, param="image" if mask is None else "mask")
        return cls(torch.from_numpy(pixels), torch.from_numpy(painted))

    @property
    def whole(self) -> Tensor:
        """As autoencoders take it: (1, 3, H, W), float32, from −1 to 1."""
        return (self.pixels.float() / 127.5 - 1).movedim(-1, 0)[None]

    @property
    def around(self) -> Tensor:
        """The same with grey where it is to be painted."""
        return torch.zeros_like(self.whole) if self.painted is None else self.whole.masked_fill(self.painted, 0.0)

    def started(self, program: Program, strength: float) -> Program:
        """What images that start from it run of a program. What is painted anew with all strength begins at pure noise, as in
        diffusers.

        Raises `InvalidInput` for a strength that leaves nothing.
        """
        from_noise = strength == 1 and self.painted is not None
        return program if from_noise else program.starting(strength)

    def shown_in(self, levels: Tensor) -> Tensor:
        """Levels (H, W, 3) of what was made of it, with its own pixels wherever it was not to be painted."""
        return levels if self.painted is None else torch.where(self.painted[..., None], levels, self.pixels)

    def shown_around(self, images: Tensor) -> Tensor:
        """The same of images (n, 3, H, W) in [0, 1]."""
        return images if self.painted is None else torch.where(self.painted, images, self.pixels.movedim(-1, 0) / 255)


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """Of one image, or of n images that are denoised together (a dimension more in front).

    latent (c, h, w): the encoded image. kept (1, h, w), bool: which of its elements every step gets back, noised to the level
    where it lands (latent blending, as diffusers' inpainting pipeline does it with a UNet of four channels; RePaint, arXiv
    2201.09865, equation 8, without its resampling); None where all may change, or where the UNet is shown what is to stay.
    """

    latent: Tensor
    kept: Tensor | None = None


def usual_strength(image: SourceImage) -> float:
    """How far back in the noise an image begins of which nobody says it."""
    return STRENGTH if image.painted is None else MASKED_STRENGTH


def kept_of(model: Model, image: SourceImage) -> Tensor | None:
    """What an `EncodedSource` of it keeps: elements of the latent whose first pixel is not to be painted, as in diffusers."""
    if image.painted is None or model.inpaints:
        return None
    return to_device(~_reduced(model, image.painted), model.device)


def pictured(model: Model, condition: Condition, picture: Tensor | None = None, size: ImageSize | None = None) -> Condition:
    """The condition of an inpainting UNet with a picture (1, 1 + c, h, w) in each row; without one, it paints everywhere.

    Of any other model it is the condition as it is.
    """
    if not model.inpaints:
        return condition
    picture = model.blank(size) if picture is None else picture
    assert condition.context is not None, "inpainting UNets without a text are refused at load"
    return replace(condition, picture=picture.expand(len(condition.context), -1, -1, -1))


def encoded(
    model: Model, image: SourceImage, condition: Condition, negative: Condition | None = None
) -> tuple[EncodedSource, Condition, Condition | None]:
    """What images of these conditions start from, all from this one, for `sampler.generate`, and the conditions as it takes
    them: an inpainting UNet sees the picture. Waits for the device."""
    kept = kept_of(model, image)
    source = EncodedSource(model.encode_image(image.whole)[None], None if kept is None else kept[None])
    if not model.inpaints:
        return source, condition, negative
    picture = picture_of(model, image, model.encode_image(image.around))
    return source, pictured(model, condition, picture), negative and pictured(model, negative, picture)


def picture_of(model: Model, image: SourceImage, around: Tensor) -> Tensor:
    """What an inpainting UNet sees of an image beside the latent: 1 where it paints, and the latent of what is around it.

    around (c, h, w): of `SourceImage.around`. Returns (1, 1 + c, h, w).
    """
    painted = torch.ones(1, *around.shape[1:], dtype=torch.bool) if image.painted is None else _reduced(model, image.painted)
    return torch.cat([to_device(painted.to(around.dtype), around.device), around])[None]


def _reduced(model: Model, painted: Tensor) -> Tensor:
    """A mask (H, W) at the latent's size: (1, h, w). The nearest pixel counts, which is the first of each square."""
    return painted[None, :: model.decoder.scale, :: model.decoder.scale]


def _resized(levels: np.ndarray, size: ImageSize) -> Image.Image:
    image = Image.fromarray(levels)
    return (
        image if image.size == (size.width, size.height) else image.resize((size.width, size.height), Image.Resampling.LANCZOS)
    )
