"""A request in the server, from its arrival to its end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from registry.document import NAME
from registry.errors import FlexiError
from server.access.keys import Key
from server.api import GenerateRequest
from server.batching.image_task import ImageResult
from server.errors import Cancelled
from server.requests.plan import Plan
from server.requests.running import while_wanted

T = TypeVar("T")

OK = "ok"  # how it ended, where it was not by an error's code


@dataclass
class Visit:
    """`limit`: the seconds it may take; `stop` is set when somebody cancels it.

    `plan` is there once the registry has answered, where it was asked. `results`: those that are done, by their place among
    the plan's orders.
    """

    request: GenerateRequest
    request_id: str
    key: Key
    limit: float
    stop: asyncio.Event
    plan: Plan | None = None
    results: dict[int, ImageResult] = field(default_factory=dict)
    arrived: float = field(default_factory=monotonic)

    async def while_wanted(self, work: Awaitable[T], *ends: tuple[Coroutine[Any, Any, Any], FlexiError]) -> T:
        """The result of `work`, unless the visit's time is over, it is cancelled, or one of `ends` comes."""
        seconds = self.arrived + self.limit - monotonic()
        return await while_wanted(work, [*ends, (self.stop.wait(), Cancelled())], seconds, self.limit)

    def line(self, code: str) -> dict[str, Any]:
        """What its log line says at the end. The tier or schedule that it asked for is there however it ended, if it is a name:
        else it may be anything, a prompt too."""
        asked = self.request.tier or self.request.schedule
        line: dict[str, Any] = {"asked": asked if asked and re.fullmatch(NAME, asked) else None}
        if code != OK:
            line["code"] = code
        if self.plan is None:
            return line
        entry, assignment, done = self.plan.entry, self.plan.assignment, self.results.values()
        line |= {"tier": entry.tier, "schedule": entry.digest, "arm": assignment and assignment.arm}
        line |= {"images": len(done), "macs": sum(each.macs for each in done)}
        line |= {"predicted_ms": milliseconds(self.plan.predicted)}
        if done:
            line |= {"queue_ms": milliseconds(max(each.queue_seconds for each in done))}
            line |= {"denoise_ms": milliseconds(max(each.denoise_seconds for each in done))}
        return line


def milliseconds(seconds: float) -> float:
    """To the microsecond."""
    return round(1000 * seconds, 3)
