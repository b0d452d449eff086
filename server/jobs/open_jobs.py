"""What a worker knows of the open jobs in the store, and which of them is the next to run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from time import monotonic

from server.jobs.job_store import OpenJob
from server.telemetry import metrics


class OpenJobs:
    """Records of open jobs by their place, as they were read last: others may have changed them since, which a swap notices.

    The one that was read longest ago comes first.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[str, OpenJob] = {}
        self._paused: dict[tuple[str, str | None], float] = {}  # by owner and model, None being all: until when, monotonic

    def __iter__(self) -> Iterator[OpenJob]:
        return iter(list(self._jobs.values()))

    def __contains__(self, place: str) -> bool:
        return place in self._jobs

    def put(self, known: OpenJob) -> None:
        """This is what a job's record says now."""
        self._jobs.pop(known.job.place, None)  # so that they are in the order in which they were read
        self._jobs[known.job.place] = known

    def forget(self, place: str) -> None:
        """The job is not open any more, or its record is not as it was."""
        self._jobs.pop(place, None)

    def places(self) -> set[str]:
        """Of all jobs known."""
        return set(self._jobs)

    def count(self, owner: str) -> int:
        """How many open jobs an owner has."""
        return sum(known.job.owner.name == owner for known in self)

    @property
    def queued(self) -> int:
        """How many wait, of all owners."""
        return sum(known.job.state == "queued" for known in self)

    def pause(self, owner: str, seconds: float, model: str | None = None) -> None:
        """An owner's jobs wait for so long: its quota is used up, or a queue is full. model: only those of one that is away."""
        self._paused[owner, model] = monotonic() + seconds

    def next(
        self, in_hand: Collection[str], lost: Collection[str], serves: Callable[[str | None], bool] = lambda _: True
    ) -> OpenJob | None:
        """A job to run: the oldest of the owner of whom the fewest run here. None where there is none.

        in_hand, lost: see `_free`. serves: whether this server has a job's model; others' jobs are for other servers.
        """
        now = monotonic()
        self._paused = {paused: until for paused, until in self._paused.items() if until > now}
        share = Counter(place.partition("/")[0] for place in in_hand)
        ready = [
            known
            for known in self._free(in_hand, lost)
            if serves(known.job.request.model)
            and not {(known.job.owner.name, None), (known.job.owner.name, known.job.request.model)} & self._paused.keys()
        ]
        return min(ready, key=lambda known: (share[known.job.owner.name], known.job.created), default=None)

    def overdue(self, in_hand: Collection[str], lost: Collection[str]) -> list[OpenJob]:
        """Jobs that are free, and whose time is over."""
        now = self._clock()
        return [known for known in self._free(in_hand, lost) if known.job.deadline <= now]

    def _free(self, in_hand: Collection[str], lost: Collection[str]) -> Iterator[OpenJob]:
        """Jobs that nobody is at. in_hand: places of those that this worker is at. lost: holders that are at none but these."""
        return (
            known for known in self if known.job.place not in in_hand and (known.job.holder is None or known.job.holder in lost)
        )

    def export(self) -> None:
        """Say in metrics what there is."""
        waiting = [self._clock() - known.job.created for known in self if known.job.state == "queued"]
        metrics.jobs.labels("queued").set(len(waiting))
        metrics.jobs.labels("running").set(len(self._jobs) - len(waiting))
        metrics.oldest_job_seconds.set(max(waiting, default=0.0))
