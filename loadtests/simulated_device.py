"""A device that only takes time: behind the host, call after call, in lanes that share it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Self

import torch
from typing_extensions import override

from engine.device import Fence, Lane
from loadtests.card import CallCost

SHORTEST_SLEEP = 1e-4  # seconds


@dataclass(eq=False)
class SimulatedCall:
    """A place in a lane. left: seconds of the whole device that it still wants, none for a fence.

    It does not begin before the time `begins` and the end of `after`. ended: when it did, if it has.
    """

    lane: deque[SimulatedCall]
    left: float = 0.0
    begins: float = -inf
    after: SimulatedCall | None = None
    ended: float | None = None

    def may_begin(self, now: float) -> bool:
        """Whether nothing but the calls before it in its lane holds it up."""
        return self.begins <= now and (self.after is None or self.after.ended is not None)


class SimulatedDevice:
    """Lanes in which calls run one after the other. Where several lanes have something to do, each gets its part of the device.

    So what runs beside something else takes nobody's place in the queue, and all of its time from the others: two lanes hide
    waiting and save no work. The host's part of a call is real: the thread that asks for it is busy as long as it takes, as
    Python is that queues kernels one by one, holding the interpreter's lock between them and not within. What a real host waits
    for when the device's queue of launches is full is left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._lanes: list[deque[SimulatedCall]] = [deque()]
        self._entered = threading.local()
        self._now = clock()

    def call(self, cost: CallCost, rows: int) -> None:
        """Ask for a call, in the lane that this thread is in. It ends when both the host and the device are done with it."""
        asked = self._put(cost.device_seconds(rows), begins=self.clock())
        self._put(begins=asked.begins + cost.host_seconds)
        be_busy(cost.host_seconds)

    def fence(self, lane: deque[SimulatedCall] | None = None) -> SimulatedFence:
        """A fence behind all calls so far of this lane, or else of the one that this thread is in."""
        return SimulatedFence(self, self._put(lane=lane))

    def new_lane(self) -> SimulatedLane:
        """One more lane."""
        lane = deque[SimulatedCall]()
        with self._lock:
            self._lanes.append(lane)
        return SimulatedLane(self, lane)

    @contextmanager
    def within(self, lane: deque[SimulatedCall], after: SimulatedCall) -> Iterator[None]:
        """Let what this thread asks for go into this lane, behind a call of another one."""
        before, self._entered.lane = self._lane, lane
        self._put(after=after)
        try:
            yield
        finally:
            self._entered.lane = before

    def ended(self, call: SimulatedCall) -> bool:
        """Whether the device is past this call."""
        with self._lock:
            self._advance(self.clock())
            return call.ended is not None

    def least_seconds(self, call: SimulatedCall) -> float:
        """What the device still needs for the call's lane up to it, if it had nothing else to do."""
        with self._lock:
            return sum(before.left for before in call.lane)

    @property
    def _lane(self) -> deque[SimulatedCall]:
        lane: deque[SimulatedCall] = getattr(self._entered, "lane", self._lanes[0])
        return lane

    def _put(
        self,
        seconds: float = 0.0,
        begins: float = -inf,
        after: SimulatedCall | None = None,
        lane: deque[SimulatedCall] | None = None,
    ) -> SimulatedCall:
        call = SimulatedCall(self._lane if lane is None else lane, seconds, begins, after)
        with self._lock:
            self._advance(self.clock())
            call.lane.append(call)
        return call

    def _advance(self, now: float) -> None:
        """Do what the device does until now: from one call's end or beginning to the next."""
        while heads := [lane[0] for lane in self._lanes if lane]:
            working = [call for call in heads if call.may_begin(self._now)]
            ends = [self._now + call.left * len(working) for call in working]
            then = min([*ends, *(call.begins for call in heads if call.begins > self._now)], default=inf)
            for call in working:
                call.left -= (min(then, now) - self._now) / len(working)
            if then > now:
                break
            for call, end in zip(working, ends, strict=True):
                if end <= then:
                    call.lane.popleft()
                    call.left, call.ended = 0.0, then
            self._now = then
        self._now = max(self._now, now)


@dataclass(frozen=True)
class SimulatedFence(Fence):
    """A fence of the simulated device: a call that wants nothing."""

    device: SimulatedDevice = field(repr=False)
    call: SimulatedCall = field(repr=False)

    @override
    def done(self) -> bool:
        return self.device.ended(self.call)

    @override
    def wait(self) -> None:
        while not self.done():  # another lane may take its part meanwhile
            time.sleep(max(self.device.least_seconds(self.call), SHORTEST_SLEEP))

    @override
    def since(self, earlier: Self) -> float:
        assert self.call.ended is not None, "the fence is not passed yet"
        assert earlier.call.ended is not None, "the earlier fence is not passed yet"
        return self.call.ended - earlier.call.ended


@dataclass(frozen=True)
class SimulatedLane(Lane):
    """A lane of the simulated device beside its first one."""

    device: SimulatedDevice = field(repr=False)
    calls: deque[SimulatedCall] = field(repr=False)

    @override
    @contextmanager
    def after(self, mark: SimulatedFence) -> Iterator[None]:
        with self.device.within(self.calls, mark.call):
            yield

    @override
    def fence(self) -> SimulatedFence:
        return self.device.fence(self.calls)


def be_busy(seconds: float) -> None:
    """Use the processor for so long, as queuing kernels does: call after call from Python that takes next to nothing."""
    end, number = time.monotonic() + seconds, torch.zeros(1)
    while time.monotonic() < end:
        number.add_(1.0)
