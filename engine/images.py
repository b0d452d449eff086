"""Images as they are handed on: float32 in [0, 1], or what files hold. One that is not finite is no picture.

In float32 it is NaN throughout, so that nobody who forgets to look takes a part of it for a picture; 8 bits cannot say it, so
`Decoded` says it beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOT_FINITE = "the pixels are not finite"


def finite(images: Tensor) -> Tensor:
    """Which of the images (n, 3, H, W) are pictures: (n,), bool. Looks at one pixel of each: the others are no better."""
    return images[:, 0, 0, 0].isfinite()


def levels(images: Tensor) -> Tensor:
    """Images (…, 3, H, W) to what files hold: (…, H, W, 3), uint8.

    Raises `FloatingPointError` where a pixel is not finite, which 8 bits would make black.
    """
    if not images.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    return rounded(images)


def rounded(images: Tensor) -> Tensor:
    """The levels of images that are finite, wherever they are: whether they are would have to be waited for."""
    return (images * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()
