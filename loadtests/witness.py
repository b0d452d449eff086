"""What a soak saw, and what of it must not be. Pure: observations in, sentences out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median

MAX_GROWTH = 0.02  # of memory after the warm-up
WARM_UP = 0.25  # of the samples: caches and the allocator fill in this time
RETRYABLE = (429, 503)  # must say when to come back


@dataclass
class Witness:
    """Statuses by kind of visitor, pixels by what decides them, memory by time."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    pixels: dict[Hashable, str] = field(default_factory=dict)
    repeated: int = 0
    resident: list[int] = field(default_factory=list)
    moves: int = 0
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

    def drawn(self, what: Hashable, pixels: str) -> None:
        """Note an image: `what` is everything that decides its pixels, `pixels` their digest."""
        if what not in self.pixels:
            self.pixels[what] = pixels
            return
        self.repeated += 1
        if self.pixels[what] != pixels:
            self.violations.append(f"other pixels than before for {what}")

    @property
    def growth(self) -> float | None:
        """Of memory: the last quarter's median over the first one's after the warm-up. None for less than 8 samples."""
        flat = self.resident[int(WARM_UP * len(self.resident)) :]
        quarter = len(flat) // 4
        return median(flat[-quarter:]) / median(flat[:quarter]) - 1 if quarter >= 2 else None

    def verdict(self) -> list[str]:
        """Every violation, those of the whole last."""
        found = [f"{times} times: {text}" for text, times in Counter(self.violations).items()]
        if self.growth is None or self.growth > MAX_GROWTH:
            grown = "was not seen for long enough" if self.growth is None else f"grew by {self.growth:.2%} after the warm-up"
            found.append(f"memory {grown}, the limit is {MAX_GROWTH:.0%}")
        for name, count in (("repeated images", self.repeated), ("alias moves", self.moves), ("outages", self.outages)):
            if not count:
                found.append(f"no {name}: the soak proves nothing about them")
        return found

    def summary(self) -> str:
        """A few lines."""
        statuses = "\n".join(f"  {visitor}: {count} × {status}" for (visitor, status), count in sorted(self.statuses.items()))
        growth = "unknown" if self.growth is None else f"{self.growth:+.2%}"
        return (
            f"answers by visitor and status (0: hung up):\n{statuses}\n"
            f"images: {len(self.pixels)} different, {self.repeated} repeated\n"
            f"alias moves: {self.moves}; outages of the store: {self.outages}\n"
            f"memory: {growth} after the warm-up, {max(self.resident, default=0) / 2**20:.0f} MiB at most"
        )
