"""The Gaussian of real images' features, kept in a file: a distance to them then needs no image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.config import reason
from evaluation.distance import Gaussian
from evaluation.features import Extractor
from registry.errors import InvalidInput

SUFFIX = ".npz"
FORM = 1  # of the file; another number is another form


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a Fréchet distance takes of `count` images of `size` (height, width), in the features of this name."""

    gaussian: Gaussian
    count: int
    features: str
    size: tuple[int, int]

    def write(self, file: Path) -> None:
        """Keep them, in single precision: mean (d,), root (r, d) with rootᵀ root the covariance, count, size, features."""
        mean, root = (part.astype(np.float32) for part in self.gaussian)
        np.savez(file, mean=mean, root=root, count=self.count, size=self.size, features=self.features, form=FORM)

    @classmethod
    def read(cls, file: Path) -> Statistics:
        """Raises `InvalidInput` for a file that holds something else."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                if int(kept["form"]) != FORM:
                    raise ValueError(f"it is of form {kept['form']}, this version reads form {FORM}")
                mean, root = kept["mean"].astype(np.float64), kept["root"].astype(np.float64)
                if mean.ndim != 1 or root.ndim != 2 or root.shape[1] != len(mean):
                    raise ValueError(f"mean and root must be (d,) and (r, d), got {mean.shape} and {root.shape}")
                height, width = (int(side) for side in kept["size"])
                return cls(Gaussian(mean, root), int(kept["count"]), str(kept["features"]), (height, width))
        except Exception as error:  # of zipfile, of NumPy
            raise InvalidInput(f"{file} is no file of statistics: {reason(error)}", param="real") from error

    def fitting(self, extractor: Extractor, size: tuple[int, int]) -> Gaussian:
        """The Gaussian, for distances to images of this size in these features. Raises `InvalidInput` for others."""
        if self.features != extractor.name:
            raise InvalidInput(f"the statistics are of features {self.features}, these are {extractor.name}", param="real")
        if self.size != size:
            raise InvalidInput(f"the statistics are of images of {self.size}, these are {size}", param="real")
        return self.gaussian
