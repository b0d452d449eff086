"""Who writes to a registry: the name, host and time that its records carry."""

from __future__ import annotations

import getpass
import os
import random
import socket
import time
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
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Writer:
    """An author at a host. `clock` gives the time, with its zone."""

    author: str
    host: str
    clock: Callable[[], datetime]

    @classmethod
    def here(cls, author: str | None = None, clock: Callable[[], datetime] = now) -> Writer:
        """This process: the login name unless another author is given, and this machine's name."""
        return cls(author or whoami(), socket.gethostname(), clock)


ATTEMPTS = 60  # to win a number or an alias that others want too; each round has one winner


def stand_back(attempt: int) -> None:
    """Wait a random while, the longer the more attempts were lost, so that those who race spread out."""
    time.sleep(random.uniform(0, min(0.25, 0.002 * 2**attempt)))
