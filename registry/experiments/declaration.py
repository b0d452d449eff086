"""The experiment: a frozen document that splits a share of one tier's traffic between schedules, and the state it is in.

A declaration never changes once it is stored; a change is a new version. Only the state moves, by compare-and-swap.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, ValidationError, model_validator

from registry.document import Document, Name, first_fault, misfit
from registry.errors import InvalidInput
from registry.experiments.automatic_ramp import AutomaticRamp
from registry.records import Digest, Number, Record, Text

BUCKETS: Final = 10_000  # a share's or a weight's resolution
MAX_ARMS = 8

Metric = Literal["queue_seconds", "service_seconds", "errors", "abandoned", "macs", "rating", "psnr", "feature_distance"]
Harm = Literal["service_p95", "errors", "abandoned", "unplanned_steps", "psnr", "macs"]
Against = Literal["ratio", "difference", "value"]
Status = Literal["draft", "running", "paused", "stopped", "killed", "rolled_back", "finished"]
Action = Literal["declare", "start", "ramp", "pause", "stop", "kill", "roll_back", "finish"]

HIGHER_IS_BETTER: Final[frozenset[Metric | Harm]] = frozenset({"rating", "psnr"})
SHARES: Final[frozenset[Metric | Harm]] = frozenset({"errors", "abandoned", "unplanned_steps"})  # of requests, in [0, 1]
BY_RATIO: Final[frozenset[Metric]] = frozenset(  # the others by difference
    {"queue_seconds", "service_seconds", "macs", "feature_distance"}
)


class Arm(Document):
    """A schedule under test. Weights are whole numbers, so that every language computes the same thresholds."""

    name: Name
    digest: Digest
    weight: int = Field(ge=1, le=BUCKETS)


class RampStage(Document):
    """One step of the ramp: the share of the tier's traffic in per cent, and what must be seen before the next stage."""

    share: float = Field(gt=0, le=100)
    minutes: float = Field(default=0, ge=0, le=525_600)
    units: int = Field(default=0, ge=0, le=10**9)

    @model_validator(mode="after")
    def _whole_buckets(self) -> Self:
        if round(self.share * 100, 6) % 1:
            raise misfit(f"must be a multiple of 0.01 %, got {self.share}", "share")
        return self

    @property
    def buckets(self) -> int:
        """How many of the 10,000 enrolment buckets this share takes."""
        return round(self.share * 100)

    def missing(self, minutes: float, units: int) -> str | None:
        """What this stage still waits for, given the minutes it lasted and the units of its smallest arm; else None."""
        if minutes < self.minutes:
            return f"{minutes:.0f} of {self.minutes:g} minutes at {self.share:g} %"
        if units < self.units:
            return f"{units} of {self.units} units in the smallest arm"
        return None


class Primary(Document):
    """The metric that decides. `minimal_effect` is the smallest effect worth knowing, and the margin of "no worse".

    It is relative to control (0.05 is 5 %) for seconds, MACs and the feature distance, and a difference otherwise: a share of
    requests for errors and abandoned ones, points for ratings, dB for PSNR.
    """

    metric: Metric
    minimal_effect: float = Field(gt=0, le=100)
    goal: Literal["superior", "not_inferior"] = "superior"

    @model_validator(mode="after")
    def _below_everything(self) -> Self:
        if (self.metric in BY_RATIO or self.metric in SHARES) and self.minimal_effect >= 1:
            raise misfit(f"of {self.metric} must be below 1, got {self.minimal_effect}", "minimal_effect")
        return self


class Guardrail(Document):
    """What no arm may do, judged over a sliding window: the arm's figure against control's, or by its own `value`.

    `limit` is the largest harmless ratio (above 1), difference in the harmful direction, or value. A check takes place each
    time the arm has `minimum_sample` new observations; `consecutive` checks in a row beyond the limit trip it.
    """

    metric: Harm
    compare: Against
    limit: float = Field(gt=0)
    minimum_sample: int = Field(default=50, ge=10, le=10_000)
    consecutive: int = Field(default=3, ge=1, le=100)
    window_seconds: float = Field(default=900, gt=0, le=86_400)

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.compare == "ratio" and (self.metric in SHARES or self.metric in HIGHER_IS_BETTER):
            raise misfit(f"{self.metric} has no ratio, it may be near 0; use difference", "compare")
        if self.compare == "ratio" and self.limit <= 1:
            raise misfit(f"a ratio to control must be above 1, got {self.limit}", "limit")
        if self.compare == "value" and self.metric in HIGHER_IS_BETTER:
            raise misfit(f"{self.metric} is better when higher, its loss is a difference", "compare")
        if self.compare != "ratio" and self.metric in SHARES and self.limit >= 1:
            raise misfit(f"a share of requests must be below 1, got {self.limit}", "limit")
        return self


class Experiment(Document):
    """The declaration. Units are hashed with `salt`; a new salt draws them afresh. `alpha` is shared by all arms."""

    format: Literal[1] = 1
    name: Name
    version: Number
    hypothesis: Annotated[str, Field(min_length=1, max_length=2000)]
    tier: Name
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=MAX_ARMS)
    control: Name
    unit: Literal["unit", "request"] = "unit"
    salt: Name
    ramp: tuple[RampStage, ...] = Field(min_length=1, max_length=20)
    primary: Primary
    guardrails: tuple[Guardrail, ...] = ()
    minimum_units: int = Field(default=200, ge=200, le=10**9, description="In each arm, before anything is concluded.")
    maximum_units: int = Field(ge=200, le=10**9, description="In the largest arm; then it ends without a decision.")
    end: AwareDatetime
    alpha: float = Field(default=0.05, gt=0, le=0.2)
    automatic: AutomaticRamp = Field(
        default=AutomaticRamp(), exclude_if=lambda automatic: automatic == AutomaticRamp()
    )  # left out: declarations without it stay the same documents

    @model_validator(mode="after")
    def _arms(self) -> Self:
        for field, values in (("name", self.names), ("digest", [arm.digest for arm in self.arms])):
            if len(set(values)) < len(values):
                raise misfit(f"two have the same {field}", "arms")
        if self.control not in self.names:
            raise misfit(f"must be one of the arms {', '.join(self.names)}, got {self.control}", "control")
        return self

    @model_validator(mode="after")
    def _rising(self) -> Self:
        shares = [stage.share for stage in self.ramp]
        if shares != sorted(set(shares)):
            raise misfit(f"shares must rise from stage to stage, got {shares}", "ramp")
        if self.maximum_units <= self.minimum_units:
            raise misfit(f"must be above minimum_units ({self.minimum_units}), got {self.maximum_units}", "maximum_units")
        return self

    @model_validator(mode="after")
    def _one_guardrail_each(self) -> Self:
        kinds = [(guardrail.metric, guardrail.compare) for guardrail in self.guardrails]
        for metric, compare in kinds:
            if kinds.count((metric, compare)) > 1:
                raise misfit(f"two limit {metric} by {compare}", "guardrails")
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a declaration, or raise `InvalidInput` naming the first field at fault and its limit."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fault = first_fault(error)
            if not fault.param:
                raise InvalidInput(f"is no valid JSON object: {fault.text}", param="experiment") from error
            raise InvalidInput(fault.text, param=fault.param) from error

    @property
    def names(self) -> list[str]:
        """The names of all arms, as declared."""
        return [arm.name for arm in self.arms]

    @property
    def harm_margin(self) -> float:
        """The loss in the primary metric that an automatic ramp excludes before it raises a share."""
        return self.automatic.harm_margin or 2 * self.primary.minimal_effect

    @property
    def treatments(self) -> list[str]:
        """The names of all arms but control."""
        return [name for name in self.names if name != self.control]


class Transition(Document):
    """One entry of an experiment's history: what was done, by whom, where and why, and what the state was from then on."""

    action: Action
    status: Status
    version: Number
    stage: int = Field(ge=0)
    time: AwareDatetime
    author: Text
    host: Text
    reason: Text = ""
    evidence: dict[str, JsonValue] | None = None


class ExperimentState(Record):
    """What an experiment does now, and what it did before (newest last). Only `running` splits any traffic."""

    name: Name
    version: Number
    status: Status
    stage: int = Field(ge=0)
    history: tuple[Transition, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_its_newest_entry(self) -> Self:
        newest = self.history[-1]
        if (self.version, self.status, self.stage) != (newest.version, newest.status, newest.stage):
            raise misfit("is not what the newest history entry says", "status")
        return self


OVER: Final[frozenset[Status]] = frozenset({"stopped", "killed", "rolled_back", "finished"})
MOVES: Final[dict[Action, tuple[frozenset[Status], Status]]] = {
    "declare": (OVER | {"draft"}, "draft"),
    "start": (frozenset({"draft", "paused"}), "running"),
    "ramp": (frozenset({"running"}), "running"),
    "pause": (frozenset({"running"}), "paused"),
    "stop": (frozenset({"draft", "running", "paused"}), "stopped"),
    "kill": (frozenset({"draft", "running", "paused"}), "killed"),
    "roll_back": (frozenset({"running", "paused"}), "rolled_back"),
    "finish": (frozenset({"running", "paused"}), "finished"),
}


def transition(
    before: ExperimentState | None,
    action: Action,
    experiment: Experiment,
    *,
    time: datetime,
    author: str,
    host: str,
    reason: str = "",
    evidence: dict[str, JsonValue] | None = None,
) -> ExperimentState:
    """The state after `action`.

    `declare` moves to a new version (from nothing, for the first one); every other action needs the version in force.
    Raises `InvalidInput` for a move that cannot be made; nothing is stored here.
    """
    if action == "declare":
        expected = before.version + 1 if before else 1
    elif before:
        expected = before.version
    else:
        raise InvalidInput(f"{experiment.name} is not declared yet, there is nothing to {action}", param="action")
    if experiment.version != expected:
        raise InvalidInput(f"to {action} {experiment.name} takes version {expected}, got {experiment.version}",
                           param="version")  # fmt: skip
    if action in ("declare", "start") and time >= experiment.end:
        raise InvalidInput(f"{experiment.name} ends at {experiment.end:%Y-%m-%d %H:%M %Z}, which is over", param="end")
    sources, status = MOVES[action]
    if before and before.status not in sources:
        allowed = " or ".join(sorted(sources))
        raise InvalidInput(f"cannot {action} {before.name}, it is {before.status} and not {allowed}", param="action")
    stage = before.stage if before and action != "declare" else 0
    if action == "ramp":
        stage += 1
        if stage == len(experiment.ramp):
            last = experiment.ramp[-1].share
            raise InvalidInput(f"cannot ramp {experiment.name}, {last:g} % is its last stage", param="action")
    if action == "roll_back" and not evidence:
        raise InvalidInput(f"to roll back {experiment.name} takes the evidence of a harm", param="evidence")
    moved = {"action": action, "status": status, "version": expected, "stage": stage}
    said = {"time": time, "author": author, "host": host, "reason": reason, "evidence": evidence}
    try:
        entry = Transition.model_validate(moved | said)
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(fault.text, param=fault.param) from error
    history = (*before.history, entry) if before else (entry,)
    return ExperimentState(name=experiment.name, version=expected, status=status, stage=stage, history=history)
