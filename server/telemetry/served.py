"""Of which model a metric, a log line or a span tells: the one that its thread or task is at work for.

Nobody hands the name on from call to call: who begins to work for a model says so once, and tasks and threads that are begun
within (`asyncio.create_task`, `asyncio.to_thread`) go on saying it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_model = ContextVar("model", default="")


def model() -> str:
    """The model's name; empty where the work is for none, or for all."""
    return _model.get()


def begin(name: str) -> None:
    """What is counted and logged from now on, in this task or thread, is this model's."""
    _model.set(name)


@contextmanager
def serving(name: str) -> Iterator[None]:
    """What is counted and logged within is this model's."""
    token = _model.set(name)
    try:
        yield
    finally:
        _model.reset(token)
