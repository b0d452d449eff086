"""What somebody may expect of a model or an image and does not get: said, never dropped silently."""

from __future__ import annotations

from typing import NamedTuple


class Notice(NamedTuple):
    """A wish that is not met: a stable `code` for machines, and a sentence for people."""

    code: str
    message: str
