"""What a soak saw, and what of it must not be. Pure: observations in, sentences out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

MAX_GROWTH = 0.02  # of memory after the warm-up
WARM_UP = 0.25  # of the samples: caches and the allocator fill in this time
MAX_LEVELS = 1  # of 255 between equal requests in different company: kernels round by batch size (docs/decisions.md)
MIN_SERVED = 0.9  # of the requests of those who wait; the others are refused, and told when to come back
RETRYABLE = (429, 503)  # must say when to come back


@dataclass
class SoakRecord:
    """Statuses by kind of visitor, pixels by what decides them, memory by time."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    pixels: dict[Hashable, NDArray[np.uint8]] = field(default_factory=dict)
    apart: Counter[int] = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)
    streams: int = 0  # that were read to their end
    previews: int = 0
    moved_away: int = 0  # in the middle of a stream
    pairs: int = 0  # of requests that were asked alone
    moves: int = 0  # of an alias
    outages: int = 0

    def answered(self, visitor: str, status: int, retry_after: str | None, expected: int = 200) -> bool:
        """Note a status; whether it is the expected one. No other is allowed but a refusal that says when to come back."""
        self.statuses[visitor, status] += 1
        if status in RETRYABLE and status != expected:
            if not (retry_after or "").isdigit():
                self.violations.append(f"{visitor}: status {status} with Retry-After {retry_after!r}")
        elif status != expected:
            self.violations.append(f"{visitor}: status {status} where {expected} was expected")
        return status == expected

    def drawn(self, what: Hashable, pixels: NDArray[np.uint8]) -> None:
        """Note an image: `what` is everything that decides its pixels. Counts how far repeats are apart, in levels."""
        if what not in self.pixels:
            self.pixels[what] = pixels
            return
        levels = int(np.abs(pixels.astype(np.int16) - self.pixels[what]).max())
        self.apart[levels] += 1
        if levels > MAX_LEVELS:
            self.violations.append(f"an image is {levels} levels from what it was before: {what}")

    def streamed(self, events: Counter[str], images: int) -> None:
        """Note a stream that was read to its end: its events by type, of which one for each image must complete it."""
        self.streams += 1
        self.previews += events["image_generation.partial_image"]
        if events["image_generation.completed"] != images or events["error"]:
            self.violations.append(f"a stream of {images} images ended after {dict(events)}")

    def alone(self, what: object, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        """Note what a request was answered twice while there was no other."""
        self.pairs += 1
        if not np.array_equal(first, second):
            self.violations.append(f"asked alone, an image is not the same twice: {what}")

    @property
    def served(self) -> float:
        """Share of the requests of those who wait that were answered with images."""
        asked = sum(count for (visitor, _), count in self.statuses.items() if visitor == "waits")
        return self.statuses["waits", 200] / asked if asked else 0.0

    @property
    def growth(self) -> float | None:
        """Growth of memory, the last quarter's median over the first one's after the warm-up. None for fewer than 8 samples."""
        flat = self.resident[int(WARM_UP * len(self.resident)) :]
        quarter = len(flat) // 4
        return median(flat[-quarter:]) / median(flat[:quarter]) - 1 if quarter >= 2 else None

    def verdict(self) -> list[str]:
        """Every violation; last those of the run as a whole."""
        broken = [f"{times} times: {text}" for text, times in Counter(self.violations).items()]
        if self.growth is None or self.growth > MAX_GROWTH:
            grown = "was not seen for long enough" if self.growth is None else f"grew by {self.growth:.2%} after the warm-up"
            broken.append(f"memory {grown}, the limit is {MAX_GROWTH:.0%}")
        if self.served < MIN_SERVED:
            broken.append(f"waits: {self.served:.1%} of the requests were served, the limit is {MIN_SERVED:.0%}")
        seen = {
            "repeated images": self.apart.total(),
            "streams": self.streams,
            "previews": self.previews,
            "streams left in the middle": self.moved_away,
            "requests alone": self.pairs,
            "alias moves": self.moves,
            "outages": self.outages,
        }
        return broken + [f"no {name}: the soak proves nothing about them" for name, count in seen.items() if not count]

    def summary(self) -> str:
        """What happened, in a few lines for people."""
        statuses = "\n".join(f"  {visitor}: {count} × {status}" for (visitor, status), count in sorted(self.statuses.items()))
        apart = ", ".join(f"{count} at most {levels} levels apart" for levels, count in sorted(self.apart.items()))
        growth = "unknown" if self.growth is None else f"{self.growth:+.2%}"
        return (
            f"answers by visitor and status (0: hung up):\n{statuses}\n"
            f"images: {len(self.pixels)} different; repeats: {apart or 'none'}\n"
            f"streams: {self.streams} with {self.previews} previews, {self.moved_away} more left in the middle\n"
            f"asked twice alone: {self.pairs} requests\n"
            f"alias moves: {self.moves}; outages of the store: {self.outages}\n"
            f"memory: {growth} after the warm-up, {max(self.resident, default=0) / 2**20:.0f} MiB at most"
        )
