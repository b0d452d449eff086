"""The places of a server's workers: a number each, and, where each worker has a GPU of its own, the name of one.

The supervisor leaves a file for each place. A worker takes a place by locking its file, which it holds for as long as it lives
(flock(2)), however it ends; so its successor finds free what it had. Beside the file is how often the place was taken without
success: where others serve, one whose GPU is gone is tried ever more seldom, and neither they nor the processor notice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from registry.errors import FlexiError
from registry.files import replace_file, try_lock

FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 5.0, 4.0, 600.0  # seconds from one try to the next: fewer than three in ten minutes
WELL_SECONDS = 600.0  # who was open for so long has done well: its place is as new
PATIENCE = 60.0  # seconds for a process that was killed to let go of its place


@dataclass(frozen=True)
class PlaceRecord:
    """What the file of a place says. gpu: as CUDA_VISIBLE_DEVICES names it. tries: how often it was taken since all was well.

    taken, opened: Unix times of the last worker's start, and of when it took requests first; 0 for never.
    """

    gpu: str | None = None
    tries: int = 0
    taken: float = 0.0
    opened: float = 0.0

    def next_try(self) -> float:
        """The Unix time before which nobody should try it again."""
        if not self.tries:
            return 0.0
        return self.taken + min(LONGEST_PAUSE, FIRST_PAUSE * PAUSE_GROWTH ** min(self.tries - 1, 10))


class WorkerPlace:
    """A place that this process holds until it ends."""

    def __init__(self, path: Path, lock: BinaryIO, record: PlaceRecord) -> None:
        self.path, self.record = path, record
        self._lock = lock

    @property
    def number(self) -> int:
        """From 1."""
        return int(self.path.name)

    def opened(self) -> None:
        """Its worker takes requests now."""
        self._write(replace(self.record, opened=time.time()))

    def close(self) -> None:
        """Give the place to others. A process that ends does so without it."""
        self._lock.close()

    def try_anew(self, others_serve: Callable[[], bool]) -> None:
        """Count one more try, as late as what went before advises, if others serve meanwhile."""
        while (pause := self.record.next_try() - time.time()) > 0 and others_serve():
            time.sleep(min(pause, 1.0))
        self._write(replace(self.record, tries=self.record.tries + 1, taken=time.time(), opened=0.0))

    def _write(self, record: PlaceRecord) -> None:
        """Beside the locked file, which must stay the same one."""
        self.record = record
        replace_file(_beside(self.path), json.dumps(asdict(record)).encode())


def lay_out(folder: Path, workers: int, gpus: Sequence[str]) -> None:
    """In the supervisor: one place for each GPU, or else for each worker. A GPU more than there are workers is a spare one."""
    for number, gpu in enumerate(gpus or [None] * workers, start=1):
        (folder / str(number)).touch()
        replace_file(_beside(folder / str(number)), json.dumps(asdict(PlaceRecord(gpu))).encode())


def take(folder: Path, others_serve: Callable[[], bool], patience: float = PATIENCE) -> WorkerPlace:
    """In a worker: the free place that promises most, and when its time has come. Raises `FlexiError` where none is free."""
    until = time.monotonic() + patience
    while not (place := _free(_by_promise(folder))):
        if time.monotonic() > until:
            raise FlexiError(
                "all places are taken: does a worker's child process outlive it, or are there more workers than places?"
            )
        time.sleep(0.05)
    place.try_anew(others_serve)
    return place


def _by_promise(folder: Path) -> list[Path]:
    places = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return sorted(places, key=lambda path: _read(path).next_try())


def _free(places: Iterable[Path]) -> WorkerPlace | None:
    for path in places:
        if lock := try_lock(path):
            return WorkerPlace(path, lock, _read(path))
    return None


def _read(path: Path) -> PlaceRecord:
    """As whoever takes it finds it: a worker that was open for long leaves a place without tries."""
    record = PlaceRecord(**json.loads(_beside(path).read_bytes()))
    well = record.opened and time.time() - record.opened >= WELL_SECONDS
    return replace(record, tries=0) if well else record


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
