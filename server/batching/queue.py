"""Tickets that wait for the engine: clients' in front, and behind them work that may run only while the engine would idle."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from server.batching.fair_queue import FairQueue
from server.batching.image_task import ImageTask
from server.errors import NotReady


class Queue:
    """Any thread may put, the engine's thread takes. Whom it takes is the door's choice."""

    def __init__(self, door: FairQueue) -> None:
        self._door = door
        self._waiting: deque[ImageTask] = deque()
        self._idle: deque[ImageTask] = deque()
        self._changed = threading.Condition()  # guards both and `_open`
        self._open = True

    def __len__(self) -> int:
        """Clients' tickets."""
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether `put` takes anything."""
        return self._open

    def put(self, tasks: Sequence[ImageTask]) -> None:
        """Raises `NotReady` when the queue is closed. Tickets of idle orders wait apart."""
        with self._changed:
            if not self._open:
                raise NotReady("the server is stopping")
            for task in tasks:
                (self._idle if task.spec.idle else self._waiting).append(task)
            self._changed.notify()

    def put_back(self, tasks: Sequence[ImageTask]) -> None:
        """Idle tickets that had to go out of the engine: they are the next again."""
        with self._changed:
            self._idle.extendleft(tasks)

    def wait(self) -> None:
        """Sleep until there is a ticket or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._idle or not self._open)

    def take(self, room: int, limit: int) -> list[ImageTask]:
        """At most `limit` clients' tickets that fit into `room` slots together."""
        tasks = list[ImageTask]()
        with self._changed:
            while self._waiting and len(tasks) < limit:
                task = self._door.next(self._waiting, monotonic())
                if task.unet_rows > room:
                    break
                self._waiting.remove(task)
                self._door.charge(task.tier, task.remaining_macs)
                tasks.append(task)
                room -= task.unet_rows
        return tasks

    def take_idle(self) -> list[ImageTask]:
        """One idle ticket, if no client waits."""
        with self._changed:
            return [self._idle.popleft()] if self._idle and not self._waiting else []

    def remove(self, task: ImageTask) -> None:
        """Take out one that may wait here, or not."""
        with self._changed, suppress(ValueError):
            (self._idle if task.spec.idle else self._waiting).remove(task)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def empty(self) -> list[ImageTask]:
        """Take out everybody."""
        with self._changed:
            tasks = [*self._waiting, *self._idle]
            self._waiting.clear()
            self._idle.clear()
        return tasks

    def macs(self) -> Counter[str]:
        """Of the clients' tickets, by tier."""
        macs = Counter[str]()
        for task in list(self._waiting):  # a copy made in one go: other threads go on
            macs[task.tier] += task.remaining_macs
        return macs
