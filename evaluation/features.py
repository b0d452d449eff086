"""What distances are measured in: features of images, and who makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Features: TypeAlias = NDArray[np.float64]


class Extractor(Protocol):
    """Turns images into features. `name` is what a report calls them: distances compare only within one name."""

    name: str

    def images(self, images: Tensor) -> Features:
        """Images (n, 3, H, W) in [0, 1], on the CPU, to features (n, d). Not finite where an image is not."""

    def texts(self, prompts: Sequence[str]) -> Features | None:
        """Prompts to features of the same space (n, d); None where no text is read, or where none of them says anything."""

    def recognised(self, images: Tensor, prompts: Sequence[str]) -> NDArray[np.bool_] | None:
        """Whether each image (n,) is taken for the class that its prompt names; None unless every prompt names one."""
        return None
