"""The teacher's outputs for a sample: computed once, kept in a file, shared by all who evaluate on that sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from registry.files import replacing
from search_jobs.path import TeacherPath


@dataclass(frozen=True)
class TeacherOutputs:
    """images (n, 3, H, W) in [0, 1], and the path to them where corrections are to be fitted."""

    images: Tensor
    path: TeacherPath | None

    @classmethod
    def read(cls, file: Path, key: str, device: torch.device) -> TeacherOutputs | None:
        """What `write` kept; None where there is no such file, or one made for another `key`."""
        if not file.is_file():
            return None
        stored = torch.load(file, weights_only=True)
        if stored["key"] != key:
            return None
        return cls(stored["images"], TeacherPath.of(stored["path"], device) if stored["path"] else None)

    def write(self, file: Path, key: str) -> None:
        """Keep the outputs. A kill leaves the old file or the new one, and so do several processes that write the same."""
        path = self.path.tensors() if self.path is not None else {}
        with replacing(file) as stream:
            torch.save({"key": key, "images": self.images.cpu(), "path": path}, stream)
