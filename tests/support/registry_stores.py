"""What the scripts that race and kill writers share: a store that other processes can open, and schedules by number."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from seaweed import S3Server, run_seaweed

from registry.schedule import ModelRef, Schedule, Segment, Solver
from registry.stores.base import ObjectStore
from registry.stores.folder import FolderStore
from registry.stores.s3 import S3Store

MODEL = ModelRef(name="emoji64", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)


@dataclass(frozen=True)
class Place:
    """A folder, or a prefix of a bucket where there is a server. Travels to other processes, which open it anew."""

    folder: Path
    server: S3Server | None = None
    prefix: str = "registry"

    @classmethod
    def make(cls, kind: str, folder: Path, stack: ExitStack) -> Place:
        """A new one; `s3` starts a server that ends with the stack."""
        return cls(folder, stack.enter_context(run_seaweed()) if kind == "s3" else None)

    def open(self) -> ObjectStore:
        """The store, with connections of its own."""
        return S3Store(self.server.client(), self.server.bucket, self.prefix) if self.server else FolderStore(self.folder)


def schedule_number(number: int) -> Schedule:
    """A different schedule for each number from 0 to 2⁴⁹ - 1."""
    solver = Solver(name="ddim", teacher_steps=50, spacing="leading")
    partial = tuple(offset for offset in range(1, 50) if number >> (offset - 1) & 1)
    return Schedule(model=MODEL, solver=solver, segments=(Segment(partial=partial),))
