"""What report.json and compare.json hold, as far as it is shown or published: checked once, when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from registry.document import Name, first_fault
from registry.errors import InvalidInput
from registry.schedule import ModelRef, Schedule

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Figures(TypedDict):
    """A measurement; what else it holds is not looked at here, as in all of these."""

    cost: float
    rfid: float
    psnr: float
    clip_score: NotRequired[float | None]
    accuracy: NotRequired[float | None]
    intervals: NotRequired[dict[str, tuple[float, float]] | None]


class _Estimate(TypedDict):
    """A figure against another's, with its 95 % interval."""

    value: float
    low: float
    high: float


class _Baseline(TypedDict):
    family: str
    name: str


class _Steps(TypedDict):
    full: int
    partial: int


class _Judged(TypedDict):
    cost: float
    loss: float


class _Point(_Judged):
    digest: str
    rung: str


_ByHand = TypedDict("_ByHand", {"digest": _Digest, "baseline": _Baseline, "search": _Judged, "held-out": NotRequired[_Figures]})
_Rival = TypedDict("_Rival", {"digest": _Digest, "steps": _Steps, "baseline": _Baseline, "held-out": _Figures})
_AtScale = TypedDict(
    "_AtScale", {"guidance": float, "held-out": NotRequired[_Figures], "strongest_baseline": NotRequired[_Figures]}
)
_AtSize = TypedDict("_AtSize", {"size": str, "held-out": NotRequired[_Figures], "strongest_baseline": NotRequired[_Figures]})
_Budget = TypedDict(
    "_Budget",
    {
        "digest": _Digest,
        "steps": _Steps,
        "baseline": _Baseline | None,
        "finals": _Judged,
        "held-out": _Figures,
        "ceiling": float,
        "strongest_baseline": _Rival | None,
        "against_baseline": NotRequired[dict[str, _Estimate]],  # since images are compared in pairs
        "by_guidance": NotRequired[list[_AtScale]],  # since schedules hold at several scales
        "by_size": NotRequired[list[_AtSize]],  # and at several sizes
        "schedule": Schedule,
    },
)


class _Config(TypedDict):
    guidance: float
    prompts_digest: str
    heldout: int
    scaled: NotRequired[int]
    screen: int
    images: int
    select: int


class _Provenance(TypedDict):
    job: str
    seed: int
    commit: str | None
    finished: str
    searched_images: float
    searched_schedules: float


class _Teacher(TypedDict):
    digest: _Digest
    macs: float
    schedule: Schedule


class _Samples(TypedDict):
    prompts: list[str]
    seeds: list[int]


class _Progress(TypedDict):
    images: float
    hypervolume: float


class _Stage(TypedDict):
    schedules: float
    images: float
    macs: float
    macs_shared: float


class _Spent(TypedDict):
    stages: dict[str, _Stage]
    teacher_images: float
    search_images: float
    front_points: float
    images_per_front_point: float
    images_per_front_point_without_rungs: float
    macs_per_front_point: float
    macs_per_front_point_without_sharing: float


class Rate(TypedDict):
    """How fast a stage was."""

    images: float
    seconds: float
    images_per_second: float
    macs_per_second: float


class ReportDocument(TypedDict):
    """report.json."""

    config: _Config
    model: ModelRef
    space_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(e[+-]?\d+)?$")]
    provenance: _Provenance
    evaluated: list[_Point]
    front: list[str]
    by_hand: list[_ByHand]
    budgets: list[_Budget]
    tiers: dict[Name, _Budget]
    progress: list[_Progress]
    spent: _Spent
    throughput: NotRequired[dict[str, Rate]]  # since it is measured
    samples: _Samples
    teacher: _Teacher


class _Other(_Figures):
    searched_against_this: NotRequired[dict[str, _Estimate]]


class _Named(_Other):
    name: str


class _Student(_Named):
    solver: str
    steps: int
    guidance: float


class _Compared(TypedDict):
    relative: float
    searched: _Figures | None
    baselines: dict[str, _Named]


class ComparisonDocument(TypedDict):
    """compare.json."""

    budgets: Annotated[list[_Compared], Field(min_length=1)]
    twins: NotRequired[dict[str, list[_Other | None]]]
    rivals: NotRequired[list[_Student]]  # since other models can be measured


def read_document(path: Path, shape: type[ReportDocument] | type[ComparisonDocument], remedy: str) -> dict[str, Any]:
    """The document as it is in its file. Raises `InvalidInput` naming the file, the fault and the remedy."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        TypeAdapter(shape).validate_python(document)
    except ValidationError as error:
        raise InvalidInput(f"{path} is damaged or of another version ({first_fault(error)}): {remedy}", param="run") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is damaged, for it is not JSON: {remedy}", param="run") from error
    return document
