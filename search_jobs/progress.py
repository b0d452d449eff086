"""How far a job is: whoever wants to know is told in images; at a terminal, as bars."""

from __future__ import annotations

from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text
from typing_extensions import override


class Progress(Protocol):
    """Is told how far the job is. Work is counted in images."""

    def begin(self, name: str, images: int) -> None:
        """A part of the job begins that takes about `images` images; 0 for what has only to be said."""

    def advance(self, images: int) -> None:
        """`images` more images of the part that began last are done."""


class _Rate(ProgressColumn):
    """Images a second, since the part began."""

    @override
    def render(self, task: Task) -> Text:
        return Text(rate, no_wrap=True) if (rate := _rate(task)) else Text()


def _rate(task: Task) -> str | None:
    """None while there is nothing to tell."""
    seconds = task.finished_time or task.elapsed
    return f"{task.completed / seconds:.3g}/s" if task.completed and seconds else None


class ProgressBars(Progress):
    """One bar per part of the job, with images a second and an estimate of the time left.

    A context manager: the bars live inside it. Where they cannot be drawn, lines say that a part begins, and how fast it was.
    """

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), _Rate(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._newest: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._newest is not None:
            self._ended()
            self._bars.stop()

    @override
    def begin(self, name: str, images: int) -> None:
        self._ended()
        if not self._bars.console.is_terminal:  # bars would show only at the end
            self._bars.console.print(f"{name}: {images} images" if images else name, highlight=False)
        self._bars.start()  # not before: bars without a task leave an empty line, also above an error
        self._newest = self._bars.add_task(name, total=images)

    @override
    def advance(self, images: int) -> None:
        if self._newest is not None:
            self._bars.advance(self._newest, images)

    def _ended(self) -> None:
        """The part that began last is over, with fewer images than were expected perhaps."""
        if self._newest is None:
            return
        self._bars.stop_task(self._newest)
        if self._bars.console.is_terminal:
            return
        task = self._bars.tasks[-1]
        if rate := _rate(task):
            self._bars.console.print(f"{task.description}: {rate.replace('/', ' images/')}", highlight=False)
