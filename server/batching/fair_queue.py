"""Tasks that wait for the engine: clients' in front, background work behind them, and last what nobody waits for."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Generic, Protocol, TypeVar

from server.batching.shares import TierShares, Waiting
from server.errors import NotReady


class Classed(Protocol):
    """What says whose class a task is."""

    @property
    def background(self) -> bool:
        """Whether it waits behind all clients' tasks."""

    @property
    def idle(self) -> bool:
        """Whether nobody waits for it."""


class Queued(Waiting, Protocol):
    """A task as the queue sees it."""

    @property
    def spec(self) -> Classed:
        """Its class."""

    @property
    def remaining_macs(self) -> int:
        """Of all its steps that did not run."""


Q = TypeVar("Q", bound=Queued)


class FairQueue(Generic[Q]):
    """Any thread may put, the engine's thread takes; tiers share the MACs that it takes."""

    def __init__(
        self, shares: TierShares, changed: threading.Condition | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        """changed: guards all that is here, and wakes who waits for a task of any of several queues.

        clock: of the tasks' deadlines.
        """
        self._shares, self._clock = shares, clock
        self._clients: deque[Q] = deque()
        self._background: deque[Q] = deque()
        self._idle: deque[Q] = deque()
        self._changed = changed or threading.Condition()
        self._closed = ""  # why

    def __len__(self) -> int:
        """How many images clients wait for, without background work."""
        return len(self._clients)

    @property
    def has_tasks(self) -> bool:
        """Whether any task waits, background and idle ones too."""
        return bool(self._clients or self._background or self._idle)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits: a client, or background work."""
        return bool(self._clients or self._background)

    def put(self, tasks: Sequence[Q]) -> None:
        """Raises `NotReady` when the queue is closed. Background and idle tasks wait apart."""
        with self._changed:
            if self._closed:
                raise NotReady(self._closed)
            for task in tasks:
                self._deque_of(task).append(task)
            self._changed.notify()

    def put_back(self, tasks: Sequence[Q]) -> None:
        """Tasks that had to leave the engine: they are the next ones again. A client's is charged when it is taken again."""
        with self._changed:
            for task in tasks:
                waiting = self._deque_of(task)
                waiting.appendleft(task)
                if waiting is self._clients:
                    self._shares.give_back(task, task.remaining_macs)

    def take(self, fits: Callable[[Q], bool], limit: int) -> list[Q]:
        """At most `limit` clients' tasks, as far as there is room: `fits` takes it for a task, or says that there is none.

        Nobody overtakes one for whom there is no room yet, so that small images never keep a large one out.
        """
        tasks = list[Q]()
        with self._changed:
            while self._clients and len(tasks) < limit:
                choice = self._shares.next(self._clients, self._clock())
                if not fits(choice.task):
                    break
                self._clients.remove(choice.task)
                self._shares.charge(choice, choice.task.remaining_macs)
                tasks.append(choice.task)
        return tasks

    def take_background(self, fits: Callable[[Q], bool], limit: int) -> list[Q]:
        """At most `limit` background tasks in their order, if no client waits, as far as there is room; `fits` as in `take`."""
        tasks = list[Q]()
        with self._changed:
            while self._background and not self._clients and len(tasks) < limit and fits(self._background[0]):
                tasks.append(self._background.popleft())
        return tasks

    def take_idle(self) -> list[Q]:
        """The next idle task, if nobody waits; a list of one or none."""
        with self._changed:
            return [self._idle.popleft()] if self._idle and not (self._clients or self._background) else []

    def remove(self, task: Q) -> None:
        """Take out a task; one that does not wait here is no error."""
        with self._changed, suppress(ValueError):
            self._deque_of(task).remove(task)

    def close(self, reason: str) -> None:
        """Refuse every `put` from now on for this reason, or that of an earlier call, and wake who waits for a task."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify()

    def empty(self) -> list[Q]:
        """Take out all tasks, background and idle ones too."""
        with self._changed:
            tasks = [*self._clients, *self._background, *self._idle]
            for waiting in (self._clients, self._background, self._idle):
                waiting.clear()
        return tasks

    def macs(self) -> Counter[str]:
        """MACs that clients wait for, by tier."""
        macs = Counter[str]()
        for task in list(self._clients):  # a copy made in one go: other threads go on
            macs[task.tier] += task.remaining_macs
        return macs

    def _deque_of(self, task: Q) -> deque[Q]:
        if task.spec.idle:
            return self._idle
        return self._background if task.spec.background else self._clients
