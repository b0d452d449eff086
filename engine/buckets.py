"""The sizes of waves: a call of fixed shape takes as many UNet rows as a size says, and padding fills what is left over."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

MAX_ROWS = 1024  # of a wave, whatever the device
OCTAVE = 8  # sizes between a number of rows and its double: on a UNet padding costs what other rows cost, here at most 1/8


@dataclass(frozen=True)
class Buckets:
    """`sizes` in UNet rows, ascending. Without any, each number of rows is a size of its own, and nothing is padded."""

    sizes: tuple[int, ...] = ()

    def padded(self, rows: int) -> int:
        """The smallest size that takes so many rows; past the largest one, just these."""
        place = bisect_left(self.sizes, rows)
        return self.sizes[place] if place < len(self.sizes) else rows


EXACT = Buckets()


def dense(most: int) -> Buckets:
    """1, 2, 4, 6, … 32, 36, … 64, 72, … and `most`: even, as a guided image takes two rows, and `OCTAVE` to each double."""
    sizes, size = {1, 2, most}, 4
    while size < most:
        sizes.add(size)
        size += max(2, (1 << (size.bit_length() - 1)) // OCTAVE)
    return Buckets(tuple(sorted(size for size in sizes if size <= most)))
