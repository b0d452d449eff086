"""The candidates of this server's tiers: followed in the registry, offered to the shadow, and what they made recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from typing_extensions import override

from registry.errors import FlexiError, NotFound, StoreUnavailable
from registry.experiments.candidates import CandidateCatalog, DeclaredCandidate
from registry.tiers import REFERENCE
from registry.writer import now
from server.experiments.events import ImageFigures, PairEvent, pair_stream
from server.experiments.recorder import Recorder
from server.requests.plan import Plan
from server.requests.shadow_candidate import ActiveCandidate, CandidatePair, Candidates, PairedImage
from server.telemetry import metrics
from server.telemetry.faults import Faults
from server.tiers.active import ActiveSchedule, ActiveSchedules
from server.tiers.looks import keep_looking

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """What was last seen of a tier's record: its etag, "" to look again in any case; its candidate, and what became of that."""

    etag: str = ""
    candidate: DeclaredCandidate | None = None
    entry: ActiveSchedule | None = None
    fault: str = ""


class ActiveCandidates(Candidates):
    """Follows the records of tiers by etag, as the watch follows aliases.

    A candidate is verified and compiled as a tier's schedule is, and becomes no tier's: no request can reach it by this.
    While the store is away the last known ones stay, each until its time is over. `refresh` blocks, and replaces the set in one
    assignment.
    """

    refused: Mapping[str, str]  # why declared candidates of tiers make no image here

    def __init__(
        self,
        open_candidates: Callable[[], CandidateCatalog],
        schedules: ActiveSchedules,
        recorder: Recorder,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """`open_candidates` gives the same ones each time, or raises while the store is away."""
        self._open, self._schedules, self._recorder, self._clock = open_candidates, schedules, recorder, clock
        self._seen: dict[str, _Seen] = {}  # by tier
        self._active: dict[str, ActiveCandidate] = {}  # by tier
        self.refused = {}
        self._faults = Faults(log)  # by tier

    async def follow(self, seconds: float) -> None:
        """Look at the registry for ever, with pauses of about so many seconds."""
        await keep_looking(self.refresh, seconds)

    def active(self) -> list[ActiveCandidate]:
        """Those that images are made with now, sorted by tier."""
        return [one for _, one in sorted(self._active.items()) if self._clock() < one.candidate.until]

    @override
    def of(self, plan: Plan) -> ActiveCandidate | None:
        """Only of images that the tier's own schedule made, as it is now: neither an arm's nor those of before a promotion."""
        tier = plan.entry.tier
        found = self._active.get(tier) if tier else None
        if found is None or tier is None or self._clock() >= found.candidate.until:
            return None
        own = self._schedules.tier(tier).digest
        return found if plan.entry.digest == own != found.entry.digest else None

    @override
    def paired(self, plan: Plan, pair: CandidatePair) -> None:
        """One event for each image; costs an append."""
        event = PairEvent(
            time=self._clock(),
            request_id=plan.request_id,
            model=plan.entry.schedule.model.name,
            tier=plan.entry.label,
            digest=plan.entry.digest,
            candidate=pair.candidate.entry.digest,
            size=str(plan.size),
            images=pair.images and (_figures(pair.images[0]), _figures(pair.images[1])),
            failed=pair.failed,
        )
        self._recorder.record(pair_stream(event.tier), event)

    def refresh(self) -> None:
        """Look at all records once. What is bad of one is said once, and looked at again the next time."""
        try:
            candidates = self._open()
            self._seen = {tier: self._look(candidates, tier) for tier in candidates.tiers()}
        except StoreUnavailable:
            pass  # the watch logs it
        except Exception:  # whatever happens here, it must go on
            log.exception("candidates could not be followed")
        self._enforce()

    def _look(self, candidates: CandidateCatalog, tier: str) -> _Seen:
        """What is to be seen of a tier's record now; a damaged one leaves what it was. Raises `StoreUnavailable`."""
        before = self._seen.get(tier, _Seen())
        try:
            changed = candidates.state_if_changed(tier, before.etag)
            if changed is None:
                return before
            state, etag = changed
        except StoreUnavailable:
            raise
        except FlexiError as error:
            return before._replace(etag="", fault=str(error))
        candidate = state.at(self._clock())
        try:
            return _Seen(etag, candidate, self._schedules.load(candidate.digest) if candidate else None)
        except StoreUnavailable:
            raise
        except FlexiError as error:
            return _Seen("", candidate, fault=str(error))

    def _enforce(self) -> None:
        """Offer what was seen last, as far as there is something to compare; what is not offered is said once, and why."""
        active, refused = dict[str, ActiveCandidate](), dict[str, str]()
        for tier, (_, candidate, entry, fault) in self._seen.items():
            if candidate and self._clock() < candidate.until and not self._is_promoted(candidate):
                reason = self._reason_against(entry, tier) if entry else fault
                if entry and not reason:
                    active[tier] = ActiveCandidate(candidate, entry)
                else:
                    refused[tier] = reason
            if text := refused.get(tier, fault):
                what = f"version {candidate.version} ({candidate.digest[:8]}), " if candidate else ""
                goes_on = "goes on" if tier in active else "makes no image"
                self._faults.failed(tier, f"the candidate of tier {tier}, {what}{goes_on}: {text}")
            else:
                self._faults.mended(tier)
        for one in (*self._active.values(), *active.values()):
            labels = one.candidate.tier, one.candidate.digest, one.candidate.version
            metrics.candidate_info.labels(*labels).set(one in active.values())
        metrics.candidates_unserved.set(len(refused))
        self._active, self.refused = active, refused

    def _is_promoted(self, candidate: DeclaredCandidate) -> bool:
        """Whether its tier means it: then there is nothing to compare, and nothing wrong. Said once."""
        promoted = any(one.digest == candidate.digest and one.tier == candidate.tier for one in self._schedules.tiers())
        if promoted and candidate.tier in self._active:
            log.info(
                "tier %s means its candidate now, version %d: it is made again no longer", candidate.tier, candidate.version
            )
        return promoted

    def _reason_against(self, entry: ActiveSchedule, tier: str) -> str:
        """Why its images would say nothing; empty if they do."""
        try:
            own = self._schedules.tier(tier)
        except NotFound as error:
            return str(error)
        teacher = self._schedules.tier(REFERENCE).digest
        if teacher in (entry.digest, own.digest):
            return f"{'it' if entry.digest == teacher else f'tier {tier}'} is the teacher, with which images are compared"
        return ""


def _figures(image: PairedImage) -> ImageFigures:
    one = image.comparison
    return ImageFigures(macs=image.macs, seconds=image.seconds, psnr=one.psnr, feature_distance=one.distance, rfid=one.rfid)
