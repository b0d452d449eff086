"""How far a job is: whoever wants to know is told in images; at a terminal, as bars."""

from __future__ import annotations

from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from typing_extensions import override


class Progress(Protocol):
    """Is told how far the job is. Work is counted in images."""

    def begin(self, name: str, images: int) -> None:
        """A part of the job begins that takes about `images` images; 0 for what has only to be said."""

    def advance(self, images: int) -> None:
        """`images` more images of the part that began last are done."""


class ProgressBars(Progress):
    """One bar per part of the job, with an estimate of the time left. A context manager: the bars live inside it."""

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._newest: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._newest is not None:
            self._bars.stop()

    @override
    def begin(self, name: str, images: int) -> None:
        if not self._bars.console.is_terminal:  # bars would show only at the end
            self._bars.console.print(f"{name}: {images} images" if images else name, highlight=False)
        self._bars.start()  # not before: bars without a task leave an empty line, also above an error
        self._newest = self._bars.add_task(name, total=images)

    @override
    def advance(self, images: int) -> None:
        if self._newest is not None:
            self._bars.advance(self._newest, images)
