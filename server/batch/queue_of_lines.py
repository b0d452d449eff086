"""The lines of a batch that have not ended: one that is refused again and again keeps no other from its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class QueueOfLines:
    """In the order of the file. Refused ones wait behind each other, and have every other turn while new ones are left."""

    def __init__(self, lines: Iterable[int]) -> None:
        self._new = deque(lines)
        self._refused = deque[int]()
        self._took_new = False

    def __bool__(self) -> bool:
        return bool(self._new or self._refused)

    def take(self) -> int:
        """The line whose turn it is; there must be one."""
        self._took_new = bool(self._new) and not (self._took_new and self._refused)
        return (self._new if self._took_new else self._refused).popleft()

    def refused(self, line: int) -> None:
        """It is to be asked for again."""
        self._refused.append(line)
        self._took_new = False  # so that another one comes first
