"""Which parts of one piece of memory are held, by slots of several sizes.

A slot lies at a multiple of its own size: slot i of n bytes is the bytes from i·n on. So all slots of one size are rows of one
matrix, which never moves, and matrices of all sizes lie over the same memory. What is held in one of them is not free in the
others: that is all that is kept here. Numbers only, no tensors.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Sequence


class Room:
    """The bytes from `begin` to `end`, and what of them is held."""

    def __init__(self, begin: int, end: int, held: Collection[tuple[int, int]] = ()) -> None:
        self._begin, self._end = begin, end
        self._held = sorted(held)  # (first byte, byte after the last)

    def copy(self) -> Room:
        """The same, to try out what would fit."""
        return Room(self._begin, self._end, self._held)

    def take(self, size: int, count: int) -> list[int] | None:
        """Hold `count` slots of `size` bytes, those that lie first; None, and nothing is held, where there are not as many."""
        slots = self._free(size, count)
        if len(slots) < count:
            return None
        for slot in slots:
            insort(self._held, (slot * size, (slot + 1) * size))
        return slots

    def give_back(self, size: int, slots: Sequence[int]) -> None:
        """Free slots of this size."""
        for slot in slots:
            self._held.remove((slot * size, (slot + 1) * size))

    def free(self, size: int) -> int:
        """How many slots of `size` bytes could be taken."""
        return len(self._free(size, self._end // size))

    def _free(self, size: int, count: int) -> list[int]:
        """The first `count` free slots, or as many as there are."""
        slots, slot = list[int](), -(-self._begin // size)
        for first, after in (*self._held, (self._end, self._end)):
            while len(slots) < count and (slot + 1) * size <= first:
                slots.append(slot)
                slot += 1
            if len(slots) == count:
                break
            slot = max(slot, -(-after // size))
        return slots
