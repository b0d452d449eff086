"""What is known of a request while it is served: the edge makes the record, and whoever handles the request fills it in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from registry.document import NAME
from server.access.keys import Key
from server.api import GenerateRequest
from server.batching.image_task import ImageResult
from server.requests.plan import Plan
from server.requests.usage import Usage, milliseconds

OK = "ok"  # how it ended, where it was not by an error's code
_broken_off: ContextVar[Callable[[], bool]] = ContextVar("broken_off", default=lambda: False)


@dataclass
class RequestContext:
    """One HTTP request, or a job. `key` is there once the edge knows whose it is, the rest where images were asked for.

    limit: the seconds that a job may take from its arrival; requests have the planner's.
    arrived: when the request was found valid, by the monotonic clock. plan: once the registry has answered, where it was asked.
    results: the images that were made for it, by their place in the plan, whose repeats are not among them. code: `OK`, or that
    of the error it ended with.
    """

    request_id: str
    key: Key | None = None
    request: GenerateRequest | None = None
    arrived: float = field(default_factory=monotonic)
    plan: Plan | None = None
    results: dict[int, ImageResult] = field(default_factory=dict)
    code: str | None = None
    limit: float | None = None

    @property
    def usage(self) -> Usage:
        """What the images that were made for it took together."""
        return Usage.of(self.results.values())

    def log_fields(self) -> dict[str, Any]:
        """What its log line says at the end, whichever way it ended."""
        fields: dict[str, Any] = {}
        if self.key:
            fields["key"] = self.key.name
        if self.request:
            fields["asked"] = self._asked(self.request)
        if self.code not in (None, OK):
            fields["code"] = self.code
        if self.plan:
            fields |= self._plan_fields(self.plan)
        return fields

    def _asked(self, request: GenerateRequest) -> str | None:
        """The tier or schedule that was asked for, if it is a name: else it may be anything, a prompt too."""
        asked = request.tier or request.schedule
        return asked if asked and re.fullmatch(NAME, asked) else None

    def _plan_fields(self, plan: Plan) -> dict[str, Any]:
        usage, entry = self.usage, plan.entry
        fields: dict[str, Any] = {
            "tier": entry.tier,
            "schedule": entry.digest,
            "arm": plan.arm,
            "size": str(plan.size),
            "prompt_chunks": plan.specs[0].chunks,
            "images": usage.images,
            "macs": usage.macs,
            "predicted_ms": milliseconds(plan.predicted),
        }
        if plan.repeats:
            fields["repeats"] = len(plan.repeats)
        if plan.adapters:
            fields["loras"] = str(plan.adapters)
        if plan.edit:
            fields["strength"] = plan.edit.strength
        if plan.warnings:
            fields["warnings"] = [warning.code for warning in plan.warnings]  # their messages repeat what was sent
        if usage.images:
            fields |= {"queue_ms": milliseconds(usage.queue_seconds), "denoise_ms": milliseconds(usage.denoise_seconds)}
        return fields


@contextmanager
def may_be_broken_off(stopped: Callable[[], bool]) -> Iterator[None]:
    """Around a request: when it is cancelled, `stopped` says whether the stopping server did that. Else its client left.

    It holds for the tasks that are begun within, too.
    """
    token = _broken_off.set(stopped)
    try:
        yield
    finally:
        _broken_off.reset(token)


def broken_off() -> Callable[[], bool]:
    """What says, of the request around this call, whether the stopping server has cancelled it."""
    return _broken_off.get()
