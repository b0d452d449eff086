"""How long the device has answered nothing. Another thread must see that: the one that uses the device hangs with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic


class Silence:
    """For the thread that uses the device; any thread may read `seconds`."""

    def __init__(self) -> None:
        self._since: float | None = None  # nothing is awaited

    @property
    def seconds(self) -> float:
        """Since the last answer, or since something was first asked; 0 while no answer is awaited."""
        since = self._since
        return 0.0 if since is None else max(monotonic() - since, 0.0)

    def begin(self) -> None:
        """The device has answered, or is about to be asked: the next answer is awaited from now on."""
        self._since = monotonic()

    def end(self) -> None:
        """Nothing is awaited."""
        self._since = None

    @contextmanager
    def excused(self) -> Iterator[None]:
        """What is done within may take any time."""
        self.end()
        try:
            yield
        finally:
            self.begin()
