"""Work on the device in pieces as large as its memory holds. How large that is, is found and not guessed.

On a GPU the first piece is small and shows what one of its kind takes, the next ones fill what is free. Whatever is out of
memory all the same is tried again in halves, and the size that fits is remembered for the job.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from traceback import clear_frames
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from engine.condition import Condition
from engine.denoiser import Denoiser
from registry.errors import InvalidInput
from registry.schedule import Branch
from search_jobs.memory import Memory, out_of_memory

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST = 8  # of a kind that was not measured yet
SHARE = 0.8  # of the free memory that a piece may take: allocations leave gaps
HELD = 0.5  # of the free memory for what is held between calls; the rest is theirs


class Extent(NamedTuple):
    """The most that is generated at once: images in a UNet call, and schedules that they are of."""

    batch: int
    together: int


def usual_extent(device: torch.device) -> Extent:
    """What holds where nobody says more.

    On a GPU its memory sets the limit, below a number of rows that long fills any. On the CPU every schedule runs by itself, so
    that what it comes to does not depend, in the last digits, on what else was to be done.
    """
    return Extent(64, 1 << 20) if device.type == "cuda" else Extent(8, 1)


class Pieces:
    """Runs work in pieces, and knows of each kind of work how large they may be. One for everything on a device."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._fitted: dict[str, int] = {}  # what ran where something larger did not
        self._measured: dict[str, tuple[int, int]] = {}  # the largest piece of each kind, and the bytes that it took
        self._depth = 0

    def run(self, kind: str, count: int, most: int, work: Callable[[slice], T], each: float = 0) -> Iterator[T]:
        """Yield what `work` makes of each part of `count` things of a kind, at most `most` at once.

        each: bytes that one of them is known to hold, while pieces of other kinds run inside; 0: one is measured.
        A piece of one thing that is out of memory raises: within another piece what it got, for that one to be halved; else
        `InvalidInput`.
        """
        start, ceiling = 0, most
        while start < count:
            size = max(1, min(ceiling, count - start, self._room(kind, each)))
            try:
                done = self._attempt(kind, slice(start, start + size), work, measured=not each)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                clear_frames(error.__traceback__)  # which hold the memory of the attempt
                if size == 1 and self._depth:
                    raise
                if size == 1:
                    message = (
                        f"the memory of {self.memory.name} does not hold one of the {kind}; ask for fewer images, a smaller"
                    )
                    raise InvalidInput(f"{message} share_mib, or a dtype of half the size", param="device") from None
                ceiling = size // 2
                self.memory.release()
                continue
            if ceiling < most and self._fitted.get(kind, most) > ceiling:
                self._fitted[kind] = ceiling
                log.warning(
                    "the memory of %s is too small for more %s at once: from now on at most %d", self.memory.name, kind, ceiling
                )
            start += size
            yield done

    def _room(self, kind: str, each: float) -> int:
        """How many of a kind may be tried at once."""
        fitted, free = self._fitted.get(kind, 1 << 62), self.memory.free()
        if math.isinf(free):
            return fitted
        if each:
            return min(fitted, int(HELD * free / each))
        if kind not in self._measured:
            return FIRST
        size, taken = self._measured[kind]
        return min(fitted, int(SHARE * free * size / taken))

    def _attempt(self, kind: str, part: slice, work: Callable[[slice], T], measured: bool) -> T:
        if measured:
            self.memory.watch()
        self._depth += 1
        try:
            done = work(part)
        finally:
            self._depth -= 1
        size = part.stop - part.start
        if measured and (taken := self.memory.taken()) and size >= self._measured.get(kind, (0, 0))[0]:
            self._measured[kind] = size, taken
        return done


class UNetInPieces:
    """A network whose calls may have any number of rows; at most `rows` run at once, fewer where memory is small."""

    def __init__(self, network: Denoiser, pieces: Pieces, rows: int) -> None:
        self.network, self.pieces, self.rows = network, pieces, rows

    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        """As `Denoiser.full`."""

        def call(part: slice) -> tuple[Tensor, dict[Branch, Tensor]]:
            return self.network.full(sample[part], timesteps[part], condition[part], keep)

        outputs, features = zip(*self._run("full", len(sample), call), strict=True)
        return _joined(outputs), {branch: _joined([kept[branch] for kept in features]) for branch in features[0]}

    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        """As `Denoiser.partial`."""

        def call(part: slice) -> Tensor:
            return self.network.partial(sample[part], timesteps[part], condition[part], branch, feature[part])

        return _joined(list(self._run("partial", len(sample), call)))

    def _run(self, step: str, rows: int, call: Callable[[slice], T]) -> Iterator[T]:
        return self.pieces.run(f"rows of a {step} step", rows, self.rows, call)


def _joined(parts: Collection[Tensor]) -> Tensor:
    """All rows; of one part as it is, without a copy."""
    return next(iter(parts)) if len(parts) == 1 else torch.cat(list(parts))
