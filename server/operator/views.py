"""What the routes of operators answer beside what the registry says (`registry.site.views`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from registry.records import Digest
from registry.schedule import Kind
from registry.site.views import ShownTiers
from server.api import UnservedTier
from server.operator.second_person import RequestView

Outcomes = Annotated[dict[str, float], Field(description="Counts by outcome, since the processes began.")]
ByKind = Annotated[dict[Kind, float], Field(description="Counts by kind of step, since the processes began.")]


class OperatorView(BaseModel):
    """Who asks, what they may do, and which server this is."""

    name: Annotated[str, Field(description="The key's name: it is the author of what is done with it.")]
    may_act: bool
    why_not: Annotated[str | None, Field(description="What to do so that one may act here.")]
    models: list[str]
    registry: Annotated[str, Field(description="Its address.")]
    watch_seconds: Annotated[float, Field(description="Within about this time a server follows what was changed.")]
    commit: str


class TierInForce(BaseModel):
    """What a tier means in the process that answers."""

    tier: str
    digest: Digest
    version: int | None


class OperatorTiers(ShownTiers):
    """All tiers of a model: in the registry, and in the process that answers."""

    default: Annotated[str, Field(description="The tier of requests that name none.")]
    second_person: Annotated[list[str], Field(description="Tiers that take a second person to promote.")]
    requests: Annotated[list[RequestView], Field(description="Promotions that wait for one.")]
    in_force: list[TierInForce]
    not_served: list[UnservedTier]
    not_compared: Annotated[list[UnservedTier], Field(description="Tiers whose candidate makes no image here, and why.")]


class IntervalView(BaseModel):
    """An estimate with an interval that holds at all times at once."""

    estimate: float
    low: float
    high: float


class CourseView(BaseModel):
    """What was known at a time of an arm's effect on the primary metric: a ratio to control, or a difference."""

    time: AwareDatetime
    arm: str
    units: Annotated[int, Field(description="Of the arm or of control, whichever has fewer.")]
    effect: IntervalView | None


class ReportView(BaseModel):
    """An experiment's report: what `python -m server.experiments report --json` prints, and how it came to be so."""

    report: Annotated[dict[str, Any], Field(description="Arms, comparisons with control in every metric, and the verdict.")]
    course: Annotated[list[CourseView], Field(description="The primary metric's interval at several times.")]
    by_ratio: Annotated[bool, Field(description="Whether `course` is of ratios to control; else of differences.")]
    gate: Annotated[str | None, Field(description="What the next stage of the ramp waits for; null if for nothing.")]
    events: Annotated[int, Field(description="How many it is made of.")]
    damaged: Annotated[list[str], Field(description="What was left out because it cannot be read.")]
    time: Annotated[AwareDatetime, Field(description="When it was computed.")]


class ShadowView(BaseModel):
    """A candidate's report: what `python -m server.experiments shadow report --json` prints."""

    report: Annotated[dict[str, Any], Field(description="Figures of the same images by both, for each pair of schedules.")]
    time: Annotated[AwareDatetime, Field(description="When it was computed.")]


class LatencyHistogram(BaseModel):
    """How many observations were at most so large: cumulative counts by upper bound, without the infinite one."""

    count: float
    sum: float
    bounds: list[float]
    counts: list[float]


class TierWork(BaseModel):
    """A tier's work since the processes began. Whoever wants rates keeps an earlier answer and subtracts."""

    tier: str
    requests: Outcomes
    latency: Annotated[
        LatencyHistogram, Field(description="Seconds from a valid request to its answer, of those that went well.")
    ]
    images: Annotated[float, Field(description="Finished ones.")]
    macs: Annotated[float, Field(description="UNet MACs executed for the finished images.")]
    teacher_macs: Annotated[float, Field(description="What the teacher would have taken for the finished images.")]
    steps: ByKind


class WaveWork(BaseModel):
    """Waves of one kind of step since the processes began."""

    kind: str
    waves: float
    rows: Annotated[float, Field(description="UNet rows of all of them.")]
    seconds: float


class ModelWork(BaseModel):
    """A model's part of the work."""

    model: str
    state: Annotated[str, Field(description="In the process that answers: loaded, loading, unloaded or failed.")]
    fault: str | None
    loaded_in: Annotated[float, Field(description="How many processes have it in memory.")]
    memory_bytes: float
    queue_images: float
    inflight_images: float
    waves: list[WaveWork]
    tiers: list[TierWork]


class ServerWork(BaseModel):
    """What the server does now, by its own metrics."""

    time: Annotated[float, Field(description="Unix time.")]
    of: Literal["this process", "all processes"]
    processes: int
    queue_seconds: Annotated[float, Field(description="Predicted time for the work accepted and not done.")]
    background_seconds: Annotated[float, Field(description="The same for background work.")]
    refused: Annotated[dict[str, float], Field(description="Requests refused since the processes began, by error code.")]
    jobs: Annotated[dict[str, float], Field(description="Open jobs by state.")]
    models: list[ModelWork]
