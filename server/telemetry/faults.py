"""A fault that lasts is said once when it begins, and once when it is over."""

from __future__ import annotations

import logging


class Faults:
    """What is wrong now, by the thing that is at fault. For one thread, or behind a lock."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._texts: dict[str, str] = {}

    def failed(self, what: str, text: str, level: int = logging.WARNING) -> None:
        """Log the text, unless it is what was said of `what` last and still holds."""
        if self._texts.get(what) != text:
            self._log.log(level, "%s", text)
        self._texts[what] = text

    def mended(self, what: str) -> None:
        """Nothing is wrong with `what` any more; logged if something was."""
        if text := self._texts.pop(what, None):
            self._log.info("no longer: %s", text)
