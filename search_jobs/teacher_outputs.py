"""The teacher's outputs for a sample: computed once, kept in a file, shared by all who evaluate on that sample."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from registry.files import replacing
from search_jobs.path import TeacherPath

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherOutputs:
    """images (n, 3, H, W) in [0, 1], and the path to them where corrections are to be fitted."""

    images: Tensor
    path: TeacherPath | None

    @classmethod
    def read(cls, file: Path, key: str, device: torch.device) -> TeacherOutputs | None:
        """What `write` kept; None where there is no such file, or one made for another `key`, or a damaged one."""
        if not file.is_file():
            return None
        try:
            stored = torch.load(file, weights_only=True)
            images, path = (stored["images"], stored["path"]) if stored["key"] == key else (None, None)
        except (OSError, MemoryError):
            raise
        except Exception:  # of many kinds, by where the damage is
            log.warning("%s is damaged: the teacher makes its images again", file)
            return None
        return None if images is None else cls(images, TeacherPath.of(path, device) if path else None)

    def write(self, file: Path, key: str) -> None:
        """Keep the outputs. A kill leaves the old file or the new one, and so do several processes that write the same."""
        path = self.path.tensors() if self.path is not None else {}
        with replacing(file) as stream:
            torch.save({"key": key, "images": self.images.cpu(), "path": path}, stream)
