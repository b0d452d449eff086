"""Images that are made again while the engine would idle: few wait, their MACs are bounded, and nobody waits for them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from registry.errors import FlexiError, InvalidInput
from server.access.keys import Key
from server.access.quota import Quotas
from server.batching.image_task import ImageResult, ImageSpec
from server.errors import QuotaExceeded
from server.loras.adapter_set import AdapterSet
from server.requests.generation import Renderer
from server.requests.running import gather
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule

log = logging.getLogger(__name__)

LABEL = "shadow"  # the tier under which their work is counted
PENDING = 16  # works that wait for idle time; more are not begun, so that memory is bounded

Borrow = Callable[[AdapterSet, "asyncio.Task[None]"], None]


class IdleImages:
    """Of one model, for whoever has images made again; for the event loop."""

    def __init__(
        self,
        renderer: Renderer,
        macs: Callable[[ImageSpec], int],
        macs_per_minute: int | None = None,
        borrow: Borrow = lambda *_: None,
    ) -> None:
        """macs: what making an image takes. borrow: has a task cancelled when the LoRAs that it works with leave memory."""
        self._renderer, self._macs, self._borrow = renderer, macs, borrow
        self._key = Key(LABEL, macs_per_minute, None)
        self._quotas = Quotas()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many works wait, or are at work."""
        return len(self._tasks)

    def begin(
        self,
        specs: Sequence[ImageSpec],
        work: Callable[[], Coroutine[Any, Any, None]],
        count: Callable[[str], None],
    ) -> None:
        """Begin a work for which these images are made. `count` is called once with how it went.

        That is `ok`, `failed`, `given_up`; `dropped` where too many wait, `over_budget` where the minute's MACs are spent, or
        would not do for these images alone.
        """
        if len(self._tasks) >= PENDING:
            count("dropped")
            return
        try:
            self._quotas.take(self._key, sum(map(self._macs, specs)))
        except (QuotaExceeded, InvalidInput):  # the next one may be within it
            count("over_budget")
            return
        task = asyncio.create_task(self._run(work, count, specs[0].request_id))
        self._borrow(specs[0].adapters, task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def make(self, spec: ImageSpec) -> ImageResult:
        """An image, as soon as nobody else wants anything. Raises members of `FlexiError`."""
        (image,) = await gather(self._renderer.submit([spec]))
        return image

    def close(self) -> None:
        """Give up the works that wait."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]], count: Callable[[str], None], request_id: str) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            count("given_up")
            raise
        except FlexiError as error:
            log.warning("a shadow image failed: %s", error, extra={"fields": {"request_id": request_id}})
            count("failed")
        except Exception:  # a bug: of this image alone
            log.exception("a shadow image failed", extra={"fields": {"request_id": request_id}})
            count("failed")
        else:
            count("ok")


def shadow_of(spec: ImageSpec, schedule: ActiveSchedule) -> ImageSpec:
    """The spec of the same image made by another schedule, with the same LoRAs, from the same start, in idle time.

    Raises `InvalidInput` where the strength of an edit leaves the schedule nothing to do.
    """
    sized = schedule.program.on(spec.program.levels)
    program = spec.edit.program(sized) if spec.edit else sized
    own = replace(spec, program=program, tier=LABEL, arm=metrics.NO_ARM, deadline=math.inf, previews=0)
    return replace(own, idle=True, background=False)
