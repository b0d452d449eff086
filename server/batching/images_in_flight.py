"""The images between queue and answer, and the one way out for each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from time import monotonic
from typing import Any

from torch import Tensor

from engine.condition import Condition
from engine.device import lost
from engine.image_size import ImageSize
from engine.waves import Wave, Waves
from registry.errors import FlexiError
from server.batching import accounting
from server.batching.admission import Admission
from server.batching.image_task import ImageTask
from server.errors import GenerationFailed
from server.telemetry import metrics

log = logging.getLogger(__name__)

BATCH = 8  # texts encoded at once


class ImagesInFlight:
    """Every task that the engine took in and that has not left, whether it has steps to run or its last wave has not landed.

    The engine's thread owns it; other threads may iterate.
    """

    def __init__(self, waves: Waves[ImageTask], admission: Admission) -> None:
        self._waves = waves
        self._admission = admission
        self._tasks: list[ImageTask] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[ImageTask]:
        return iter(list(self._tasks))  # a copy made in one go

    @property
    def yielding(self) -> list[ImageTask]:
        """Background and idle tasks with steps to run; idle ones first, then those that would lose least by leaving."""
        tasks = [task for task in self._tasks if task.yields and task.slots]
        return sorted(tasks, key=lambda task: (task.spec.background, task.macs))

    @property
    def background_rows(self) -> int:
        """UNet rows of the background tasks with steps to run."""
        return sum(task.unet_rows for task in self._tasks if task.spec.background and task.slots)

    def enter(self, tasks: Sequence[ImageTask], inputs: Iterable[tuple[Tensor, Condition, Condition | None]]) -> None:
        """Give tasks their places in the waves; inputs: noise (c, h, w), condition and negative condition of each.

        All or none: raises what the device raises.
        """
        try:
            for task, (noise, condition, negative) in zip(tasks, inputs, strict=True):
                self._waves.add(task, noise, condition, negative)
        except Exception:
            for task in tasks:
                self._waves.cancel(task)
            raise
        self._tasks.extend(tasks)

    def withdraw(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Take tasks out whose place a client's task needs; returns them as they are to begin anew."""
        for task in tasks:
            self._remove(task)
            self._restore(task)
        return [task.again() for task in tasks]

    def _restore(self, task: ImageTask) -> None:
        """What admission counts no longer of a withdrawn task is to run once more."""
        if task.settled and not task.spec.idle:
            self._admission.add(task.spec.key, task.settled, background=task.spec.background)

    def finish(self, task: ImageTask, pixels: Tensor) -> None:
        """The image is there: levels (height, width, 3)."""
        if not task.yields:  # which may have lain still for most of it
            metrics.stage_seconds.labels("denoise").observe(task.denoised - task.taken)
        accounting.count_image(task)
        metrics.image_sizes_total.labels(str(ImageSize(*pixels.shape[:2]))).inc()
        metrics.prompt_chunks_total.labels(str(task.chunks)).inc()
        self.leave(task, "ok")
        with suppress(InvalidStateError):  # cancelled this very moment
            task.future.set_result(
                task.result(_shown(task, pixels))
            )  # a batch's memory must not live as long as one of its images

    def fail(self, tasks: Iterable[ImageTask], error: Exception, doing: str) -> None:
        """These images will not be. `doing`: the work at which they failed; the message says it where the error is not ours."""
        if not isinstance(error, FlexiError):
            reason = f": {error}" if isinstance(error, FloatingPointError) else ""
            error = GenerationFailed(f"{doing} this image failed{reason}")
        for task in tasks:
            self.leave(task, "failed")
            with suppress(InvalidStateError):
                task.future.set_exception(error)

    def fail_in(self, wave: Wave[ImageTask]) -> None:
        """Fail those of the wave's failed tasks that are still here: one may have been given up before its wave had landed."""
        for task in wave.failed:
            assert task.error is not None, "a failed task has its error"
            if not task.left:
                log.error("denoising failed", exc_info=task.error, extra=log_fields([task]))
                self.fail([task], task.error, "denoising")

    def attempt(self, tasks: Sequence[ImageTask], work: Callable[[Sequence[ImageTask]], None], doing: str) -> None:
        """Do the work on `BATCH` tasks at once; where that fails, on each of them alone, so that only the culprits fail.

        Raises `DeviceLost` and its like: then it is nobody's fault.
        """
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            try:
                work(batch)
            except Exception as error:
                if lost(error):
                    raise
                if len(batch) == 1:
                    log.error("%s failed", doing, **_said_of(error, batch))
                    self.fail(batch, error, doing)
                    continue
                for task in batch:
                    self.attempt([task], work, doing)

    def show(self, task: ImageTask, preview: int, pixels: Tensor) -> None:
        """Hand out preview number `preview` (0-based) of an unfinished image: levels (height, width, 3)."""
        try:
            if task.preview:
                task.preview(task.spec, preview, _shown(task, pixels))  # as in `finish`
        except Exception:
            log.exception("a preview failed", extra=log_fields([task]))

    def advance(self, task: ImageTask) -> None:
        """One more step of it has landed."""
        task.landed += 1
        try:
            if task.progress:
                task.progress(task.spec, task.landed)
        except Exception:
            log.exception("progress could not be told", extra=log_fields([task]))

    def leave(self, task: ImageTask, outcome: str) -> None:
        """The one way out, from the queue too: its memory is free, no work is owed, and the image is counted."""
        self._remove(task)
        self.settle(task, task.macs_before[-1] - task.settled)
        metrics.images_total.labels(task.spec.tier, task.spec.arm, outcome).inc()
        named = {"loras": str(task.spec.adapters)} if task.spec.adapters else {}
        task.trace.end(monotonic(), tier=task.spec.tier, outcome=outcome, **named)

    def settle(self, task: ImageTask, macs: int) -> None:
        """So much of its work ran, or never will: admission counts it no longer."""
        task.settled += macs
        if not task.spec.idle:
            self._admission.done(task.spec.key, macs, background=task.spec.background)

    def _remove(self, task: ImageTask) -> None:
        task.left = True
        self._waves.cancel(task)
        with suppress(ValueError):  # it was still waiting, or is gone
            self._tasks.remove(task)


def _shown(task: ImageTask, pixels: Tensor) -> Tensor:
    """Levels of its own memory, and in them the source's pixels wherever those were to stay."""
    edit = task.spec.edit
    return (edit.source.shown_in(pixels) if edit else pixels).clone()


def _said_of(error: Exception, tasks: Iterable[ImageTask]) -> dict[str, Any]:
    """What a log line says of an error: the traceback of what nobody foresaw, or which of ours it is, whose words may quote
    the prompt."""
    said = log_fields(tasks)
    if not isinstance(error, FlexiError):
        return {"exc_info": error, "extra": said}
    said["fields"] |= {"code": error.code} | ({"param": error.param} if error.param else {})
    return {"extra": said}


def log_fields(tasks: Iterable[ImageTask]) -> dict[str, dict[str, str]]:
    """For the `extra` of a log line: the requests that it is about."""
    return {"fields": {"request_id": " ".join(dict.fromkeys(task.spec.request_id for task in tasks))}}
