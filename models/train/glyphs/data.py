"""The drawn pictures as training data, at both models' sizes; one fifth of the families is never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

FOLDER = Path(".flexi/glyphs")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Pictures (n, 64, 64), uint8, mapped from the file; their classes (n,) and the numbers of their faces (n,)."""

    pictures: NDArray[np.uint8]
    labels: torch.Tensor
    faces: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: torch.Tensor, side: int = 64) -> torch.Tensor:
        """Pictures by number (b,), as (b, 1, side, side) in [-1, 1]; smaller ones are means over squares of pixels."""
        pixels = torch.from_numpy(self.pictures[chosen.numpy()]).float()[:, None] / 127.5 - 1
        return pixels if side == pixels.shape[-1] else torch.nn.functional.avg_pool2d(pixels, pixels.shape[-1] // side)


def load(folder: Path, held_out: bool) -> Glyphs:
    """One side of the split, of the files that models.train.glyphs.draw wrote."""
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    index = np.load(folder / "index.npz")
    mine = np.flatnonzero(index["held_out"] == held_out)
    return Glyphs(pictures[mine], torch.from_numpy(index["label"][mine]), torch.from_numpy(index["face"][mine]))
