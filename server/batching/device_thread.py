"""The one thread that uses the device. The models of a server take turns in it: a wave has one model, and the next wave is of
the model with the tier that had the fewest MACs.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import NamedTuple

from engine.config import reason
from engine.device import exclusive, lost
from server.batching.denoising import FailedWaves
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import log_fields
from server.batching.inflight_wave import InflightWave
from server.batching.member import Member
from server.batching.model_turns import ModelTurns
from server.batching.overlap import NAP, Overlap
from server.batching.silence import Silence
from server.errors import NotReady
from server.telemetry.served import serving

log = logging.getLogger(__name__)

STOPPING, LOST = "the server is stopping", "the engine is lost: another one is about to take its place"
UNLOADED = "the model is unloaded"


class AtWork(NamedTuple):
    """The wave at work, and whose it is."""

    member: Member
    inflight: InflightWave


class _Joining(NamedTuple):
    member: Member
    pieces: Iterator[None]
    warm: Future[None]


class _Leaving(NamedTuple):
    member: Member
    gone: Future[None]


class DeviceThread:
    """Takes the steps of all members. Any thread may `join`, `leave`, `wake` and `close`."""

    def __init__(self, first: Member | None = None) -> None:
        """first: takes part from the beginning, before the thread is started: a test may take its steps."""
        self.changed = threading.Condition()  # guards the queues of all members, and what follows
        self.end = LOST  # why, once the thread has
        self._members = [first] if first else []
        self._joining, self._leaving = deque[_Joining](), deque[_Leaving]()
        self.failed_waves = FailedWaves()
        self._turns, self._overlap = ModelTurns(), Overlap()
        self._silence, self._seen = Silence(), 0  # images in flight at the last look
        self._woken, self._closed = False, ""
        self._began = False  # whether any member ever was warm
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be worked on."""
        return self.thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """How long the device has answered nothing of what it was asked; 0 while it is asked nothing, or warms a model up.

        A thread that hangs in a call is alive.
        """
        return self._silence.seconds

    def join(self, member: Member) -> Future[None]:
        """Warm this member up, while the others go on, and take its steps from then on. The first one starts the thread.

        The future is done when it is warm. It has the error of a warm-up that failed; a thread whose first member cannot be
        warmed ends.
        """
        joining = _Joining(member, member.warming(), Future())
        with self.changed:
            if self._closed:
                raise NotReady(self._closed)
            self._members = [other for other in self._members if other is not member]
            self._joining.append(joining)
            self._wake()
            if self.thread.ident is None:
                self.thread.start()
        return joining.warm

    def leave(self, member: Member) -> Future[None]:
        """Take no more steps of this member as soon as it has no image. The future is done when nothing of it is at work."""
        leaving = _Leaving(member, Future())
        with self.changed:
            if self._closed:
                leaving.gone.set_result(None)
            else:
                self._leaving.append(leaving)
                self._wake()
        return leaving.gone

    def wake(self) -> None:
        """There is something to do that is no task."""
        with self.changed:
            self._wake()

    def quiet_beside(self, member: Member) -> bool:
        """Whether no client waits for an image of another model."""
        others = [other for other in self._members if other is not member]
        return not any(len(other.queue) or any(not task.yields for task in other.images) for other in others)

    def idle_beside(self, member: Member) -> bool:
        """Whether nobody at all waits for an image of another model, in the background either."""
        others = [other for other in self._members if other is not member]
        return not any(other.queue.is_wanted or any(not task.spec.idle for task in other.images) for other in others)

    def close(self) -> None:
        """Finish the current step, and the decoding of what is denoised; fail what is left, stop. Blocks as long."""
        with self.changed:
            self._closed = self._closed or STOPPING
            for member in self._members:
                member.queue.close(self._closed)
            self.changed.notify_all()
        self.thread.join()

    def step(self, at_work: AtWork | None) -> AtWork | None:
        """Drop what nobody wants, admit what fits, launch a wave behind the one at work, have decoded what that one finished.

        Returns the wave that is now at work, if any. Raises `DeviceLost` and its like.
        """
        self._look()
        self._come_and_go(at_work)
        self._capture()
        start = monotonic()
        self._each(lambda member: member.admit())
        self._look()
        launched = self._launch()
        if launched:
            self._overlap.formed(start, at_work=at_work is not None)
        self._land(at_work)
        if launched and launched.inflight.end.done():  # a CPU's
            self._land(launched)
            launched = None
        self._advance()
        self._each(lambda member: member.export())
        if launched:
            seconds = launched.member.predicted_seconds(launched.inflight)
            for _ in self._overlap.naps(launched.inflight.end, seconds):
                self._advance()
        return launched

    def _each(self, work: Callable[[Member], None]) -> None:
        """For all members; what is counted meanwhile is each one's own."""
        for member in list(self._members):
            with serving(member.counted_as):
                work(member)

    def _capture(self) -> None:
        """A graph for each member that wants one, unless a model is being loaded: no wave waits for that."""
        alone = exclusive()
        if any(member.capturing for member in self._members) and alone.acquire(timeout=NAP):
            try:
                self._each(lambda member: member.capture())
                self._silence.begin()
            finally:
                alone.release()

    def _launch(self) -> AtWork | None:
        busy = {member: member.tasks for member in self._members if member.tasks}
        if not busy:
            return None
        alone = len(self._members) == 1
        member = next(iter(busy)) if alone else self._turns.next(busy, monotonic())
        with serving(member.counted_as):
            inflight = member.launch()
        if inflight is None:
            return None
        if not alone:
            self._turns.charge(member, inflight)
        return AtWork(member, inflight)

    def _land(self, at_work: AtWork | None) -> None:
        if at_work:
            with serving(at_work.member.counted_as):
                at_work.member.land(at_work.inflight)
            self._silence.begin()
        self._overlap.begins()

    def _advance(self) -> None:
        self._each(lambda member: member.advance())
        self._look()

    def _look(self) -> None:
        """Who came was encoded, who went was decoded or given up; and where nobody is, nobody waits for the device yet."""
        count = sum(len(member.images) for member in self._members)
        if count != self._seen or not count:
            self._silence.begin()
        self._seen = count

    def _come_and_go(self, at_work: AtWork | None) -> None:
        """Let go who wants to leave and has nothing in flight, and warm up the next one by a piece."""
        for leaving in list(self._leaving):
            member = leaving.member
            if not (member.images or member.decoding or (at_work and at_work.member is member)):
                self._leaving.remove(leaving)
                self._members = [other for other in self._members if other is not member]
                self._turns.forget(member)
                member.retire(UNLOADED)
                leaving.gone.set_result(None)
        if not self._joining:
            return
        member, pieces, warm = self._joining[0]
        try:
            with serving(member.counted_as), self._silence.excused():
                if next(pieces, self) is not self:
                    return
        except BaseException as error:  # whoever waits for it has it
            self._joining.popleft()
            if not self._began:
                self._closed = LOST
            member.retire(f"the model could not be warmed up: {reason(error)}")
            warm.set_exception(error)
            if isinstance(error, Exception) and lost(error) and self._began:
                raise
            return
        self._joining.popleft()
        self._began = True
        with self.changed:
            self._members = [*self._members, member]
        warm.set_result(None)

    def _run(self) -> None:
        """Work until somebody closes or the device is lost; then nobody waits any more, whatever ended it."""
        end = LOST
        try:
            self._work()
            if self._began:
                end = self.end = STOPPING
        except Exception as error:
            self.end = f"the device is lost: {reason(error)}"
            log.error("%s", self.end, extra=log_fields(self._images()))
        finally:
            with self.changed:
                self._closed = self._closed or end
            self._each(lambda member: member.retire(end))
            self._silence.end()
            for joining in self._joining:
                with suppress(InvalidStateError):
                    joining.warm.set_exception(NotReady(end))
            for leaving in self._leaving:
                leaving.gone.set_result(None)

    def _work(self) -> None:
        at_work: AtWork | None = None
        while self._has_work(at_work):
            try:
                at_work = self.step(at_work)
            except Exception as error:  # a bug: better to fail what is in flight than to fail for ever
                if lost(error):
                    raise
                log.exception("the engine's step failed", extra=log_fields(self._images()))
                with suppress(Exception):  # what was launched before may have come to its end
                    self._land(at_work)
                at_work = None
                self._each(partial(_fail, error))
                self.failed_waves.add()
        with suppress(Exception):
            self._land(at_work)
            self._each(lambda member: member.finish())

    def _has_work(self, at_work: AtWork | None) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        members = self._members
        if not (at_work or self._joining or any(member.tasks or member.capturing for member in members)):
            with self.changed:
                if any(member.decoding for member in members):
                    if not self._closed:
                        self.changed.wait(NAP)
                elif not (self._leaving or any(member.images for member in members)):
                    self._silence.end()
                    self.changed.wait_for(
                        lambda: self._woken or self._closed or any(member.queue.has_tasks for member in self._members)
                    )
                    self._woken = False
        return not self._closed

    def _images(self) -> list[ImageTask]:
        return [task for member in self._members for task in member.images]

    def _wake(self) -> None:
        self._woken = True
        self.changed.notify_all()


def _fail(error: Exception, member: Member) -> None:
    member.fail(error)
