"""What goes wrong with a Dask cluster, in one line that says what to do."""

from __future__ import annotations

from registry.errors import FlexiError, InvalidInput
from registry.foreign_errors import explained, one_line

KEPT = "what was measured is kept: run the same command again to go on"
SAME = "start it from the repository's root, with PYTHONPATH=. and the environment of this process"


def refused(scheduler: str | None, error: Exception) -> FlexiError:
    """Of the first connection, to the scheduler at an address or (None) to one of our own."""
    if scheduler is None:
        return FlexiError(f"no cluster of this machine came up ({_named(error)}); {KEPT}", param="workers")
    if isinstance(error, ValueError):
        return InvalidInput(f"expected tcp://host:port, got {scheduler!r}: {one_line(error)}", param="scheduler")
    if isinstance(error, OSError):
        return InvalidInput(f"nobody answers at {scheduler}: {one_line(error)}", param="scheduler")
    return InvalidInput(
        f"no scheduler of this version answers at {scheduler} ({_named(error)}): check the address, and that it runs the same "
        "versions of Python and distributed",
        param="scheduler",
    )


def lost(error: Exception) -> FlexiError:
    """Of a cluster that was at work; what was measured is in the ledger."""
    from distributed import CancelledError, KilledWorker

    if isinstance(error, KilledWorker):
        deaths = error.allowed_failures + 1
        return FlexiError(f"{deaths} died one after another of the same schedules; {KEPT}", param="workers")
    if isinstance(error, CancelledError | OSError) and not getattr(error, "filename", None):  # a file's error is a worker's
        return FlexiError(f"it is gone ({_named(error)}); {KEPT}", param="scheduler")
    if isinstance(error, RuntimeError) and "deserialization of the task graph" in str(error):
        return FlexiError(f"it cannot read what this process sends: {SAME}; {KEPT}", param="scheduler")
    if isinstance(error, FlexiError):
        return FlexiError(f"one refuses its schedules: {error.message}; {KEPT}", param="workers")
    if isinstance(error, ImportError | AttributeError):
        return FlexiError(f"one lacks this code or a package ({_named(error)}): {SAME}; {KEPT}", param="workers")
    said = explained(error) or f"{_named(error)}; its log has the traceback"
    return FlexiError(f"one failed at its schedules, again and again: {said}; {KEPT}", param="workers")


def _named(error: Exception) -> str:
    said = one_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
