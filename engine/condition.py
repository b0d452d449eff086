"""What UNet rows are drawn from: everything a UNet sees besides the latent and the timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.device import to_device

PIXART_SIZES = 3  # numbers, where Stable Diffusion XL has six


@dataclass(frozen=True)
class Condition:
    """Tensors with one entry per UNet row; what the model's family does not have is None, and an unconditional row has nothing.

    context (rows, tokens, dim): what cross-attention looks at. pooled (rows, dim): a text as one vector. sizes: (rows, 6) of
    Stable Diffusion XL, whose added conditioning they are beside `pooled` (`time_ids` and `text_embeds` in diffusers), or
    (rows, 3) of PixArt-α, height, width and height / width (`resolution` and `aspect_ratio`). labels (rows,): class numbers.
    guidance (rows, dim): the embedded scale of models that take it as an input, `timestep_cond` in diffusers, or (rows, 1) of
    FLUX, which embeds it itself: the scale. picture (rows, 1 + c, h, w): what inpainting UNets see beside the latent: where to
    paint, and the latent of what is around it. mask (rows, tokens), bool: which tokens of the context are seen; without one,
    all are.
    """

    context: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    labels: Tensor | None = None
    guidance: Tensor | None = None
    picture: Tensor | None = None
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that the model's family has."""
        return [tensor for tensor in self._fields if tensor is not None]

    @classmethod
    def cat(cls, parts: Sequence[Condition]) -> Condition:
        """The rows of all parts, in order. All parts have the same fields."""
        rows = iter([torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)])
        return parts[0].map(lambda _: next(rows))

    def __getitem__(self, rows: slice) -> Condition:
        """A slice of the rows."""
        return self.map(lambda tensor: tensor[rows])

    def expand(self, rows: int) -> Condition:
        """A condition of one row, seen as one of `rows` equal rows."""
        return self.map(lambda tensor: tensor.expand(rows, *tensor.shape[1:]))

    def lengthened(self, chunks: int) -> Condition:
        """One of the kind, with a context of so many chunks as long as this one's."""
        if self.context is None:
            return self
        mask = None if self.mask is None else self.mask.repeat(1, chunks)
        return replace(self, context=self.context.repeat(1, chunks, 1), mask=mask)

    def at(self, height: int, width: int) -> Condition:
        """The same for images of this size in pixels; only a model that is told of sizes (`sizes`) sees a difference.

        Stable Diffusion XL is given it as the original and as the target size, without a crop (arXiv 2307.01952, section 2.2).
        """
        if self.sizes is None:
            return self
        of_pixart = self.sizes.shape[1] == PIXART_SIZES
        numbers = [height, width, height / width] if of_pixart else [height, width, 0, 0, height, width]
        told = to_device(torch.tensor([numbers], dtype=self.sizes.dtype), self.sizes.device)
        return replace(self, sizes=told.repeat(len(self.sizes), 1))

    def of_latents(self, height: int, width: int) -> Condition:
        """The same kind of condition, without numbers in its picture, for latents of this size."""
        if self.picture is None:
            return self
        return replace(self, picture=self.picture.new_empty(*self.picture.shape[:2], height, width))

    def to(self, device: torch.device | str) -> Condition:
        """This condition on another device."""
        place = torch.device(device)
        return self.map(lambda tensor: to_device(tensor, place) if tensor.device.type == "cpu" else tensor.to(place))

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """A condition of what `change` makes of each tensor, in the order of `tensors`."""
        return Condition(*(None if tensor is None else change(tensor) for tensor in self._fields))

    @property
    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.context, self.pooled, self.sizes, self.labels, self.guidance, self.picture, self.mask


def embedded(scale: float, width: int) -> Tensor:
    """A guidance scale g as networks see it that take it as an input, (width,), float32: of width 1 itself, else embedded as
    UNets of latent consistency models have it (arXiv 2310.04378, section 4.2).

    sin and cos of 1000 w f_i with w = g - 1 and frequencies f_i = 10000^(-i / (n - 1)), i < n = ⌊width / 2⌋.
    """
    if width == 1:
        return torch.tensor([scale])
    count = width // 2
    frequencies = torch.exp(torch.arange(count, dtype=torch.float32) * (-torch.log(torch.tensor(10000.0)) / (count - 1)))
    angles = torch.tensor(scale - 1) * 1000 * frequencies
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(width % 2)])
