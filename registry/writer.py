"""Who writes to a registry: the name, host and time that its records carry."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def whoami() -> str:
    """The login name, or the user's number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Writer:
    """An author at a host. `clock` gives the time, with its zone."""

    author: str
    host: str
    clock: Callable[[], datetime]

    @classmethod
    def here(cls, author: str | None = None, clock: Callable[[], datetime] = now) -> Writer:
        """The writer that this process is: the login name unless another author is given, at this machine."""
        return cls(author or whoami(), socket.gethostname(), clock)
