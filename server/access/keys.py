"""API keys in force. `python -m server.access` makes, lists and revokes them."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from registry.errors import InvalidInput
from server.access.key_file import EVERYBODY, Role, read, sha256
from server.telemetry import metrics

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # at least, between two looks at the file


@dataclass(frozen=True)
class Key:
    """Whom a request comes from and what they may use: MACs in a minute, predicted seconds of their queued work.

    None is no limit, and no role. The secret is not in it, so it may be logged.
    """

    name: str
    macs_per_minute: int | None
    queue_seconds: float | None
    role: Role | None = None


ANONYMOUS = Key(EVERYBODY, None, None)  # who everybody is where the server has no keys


class Keys:
    """Follows the file. A broken or vanished one changes nothing; it is logged and counted.

    The file is small and local: reading it keeps the event loop for about a millisecond.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        """Raises `InvalidInput` when there is no good file to begin with."""
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._entries = read(path).keys

    def find(self, token: str) -> Key | None:
        """Whose key this is. All entries are compared, in constant time: how long it takes says nothing about them."""
        self._look()
        digest, owner = sha256(token), None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                owner = Key(entry.name, entry.macs_per_minute, entry.queue_seconds, entry.role)
        return owner

    def _look(self) -> None:
        now = self._clock()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked, stamp = now, _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # of a broken file too: it is logged once, and read again when it changes
        try:
            self._entries = read(self._path).keys
        except InvalidInput as error:
            metrics.api_keys_errors_total.inc()
            log.error("the API keys stay as they were: %s", error.message)
        else:
            log.info("API keys read", extra={"fields": {"keys": [entry.name for entry in self._entries]}})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs once the file was written or replaced; None when it cannot be found."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
