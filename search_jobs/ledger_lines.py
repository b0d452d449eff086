"""The lines of a run's ledger, for whoever reads it without evaluating: a report has no use for torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import InvalidInput


def ledger_lines(path: Path) -> list[str]:
    """The lines of a ledger; none where there is no file. What is not UTF-8 in them fits nothing that is read of them."""
    return path.read_text("utf-8", "surrogateescape").splitlines() if path.is_file() else []


@contextmanager
def whole(path: Path, number: int, param: str) -> Iterator[None]:
    """Raises `InvalidInput` naming the line where it is no measurement."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"{path}, line {number}: no measurement of this version; remove the line, and it is measured again"
        raise InvalidInput(message, param=param) from error
