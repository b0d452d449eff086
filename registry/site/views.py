"""What is shown of a registry, as plain values: the console's routes answer it, and the static site has it in its pages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from registry.experiments.candidates import CandidateStatus, DeclaredCandidate
from registry.experiments.declaration import Experiment, Status, Transition
from registry.records import Digest, Move, Target
from registry.schedule import Kind, Schedule

LETTERS: dict[Kind, str] = {"full": "F", "partial": "p", "null": "."}

Strip = Annotated[
    str, Field(description="One letter a step, from noise to image: F full, p partial, . null.", examples=["Fp.pFp.p"])
]
Fault = Annotated[str | None, Field(description="Why nothing else is known of it: it is gone or damaged.")]


class ShownFigures(BaseModel):
    """What a schedule does, costs and is worth, as its document says; null for what was never measured."""

    strip: Strip
    steps: Annotated[dict[Kind, int], Field(examples=[{"full": 2, "partial": 4, "null": 2}])]
    teacher_steps: int
    solver: str
    relative_cost: Annotated[float | None, Field(description="MACs of an image over the teacher's; 1 of the teacher itself.")]
    macs: int | None
    rfid: float | None
    psnr: float | None
    images: Annotated[int | None, Field(description="How many images the fidelity was measured on.")]
    clip_score: float | None
    accuracy: float | None
    guidance: Annotated[list[float], Field(description="Scales at which it was validated.")]
    sizes: Annotated[list[str], Field(description="Sizes at which it was validated, WIDTHxHEIGHT.")]


class ShownVersion(BaseModel):
    """One version of a model's schedules."""

    version: int
    digest: Digest
    time: AwareDatetime
    author: str
    note: str
    tiers: Annotated[list[str], Field(description="Those that mean this digest now.")]
    on_front: Annotated[bool, Field(description="No other version shown has both less cost and less rFID.")]
    figures: ShownFigures | None
    fault: Fault = None


class ShownFront(BaseModel):
    """The newest versions of a model's schedules, newest first, and which tiers point at which."""

    model: str
    versions: list[ShownVersion]
    older: Annotated[int, Field(description="How many older versions are not shown.")]


class ShownCandidate(BaseModel):
    """The candidate that was declared last for a tier, and by whom."""

    candidate: DeclaredCandidate
    status: Annotated[CandidateStatus, Field(description="promoted: the tier means it now.")]
    time: AwareDatetime
    author: str
    reason: str


class ShownTier(BaseModel):
    """A tier: what it means, what it meant, and what a rollback would lead to."""

    tier: str
    digest: Digest | None
    version: int | None
    moves: Annotated[int, Field(description="How often it was moved: an action says it back, and is refused if it changed.")]
    back: Annotated[Target | None, Field(description="What a rollback leads to.")]
    history: Annotated[list[Move], Field(description="Its newest moves, newest first.")]
    figures: ShownFigures | None
    candidate: Annotated[ShownCandidate | None, Field(description="Made again in idle time, for nobody's eyes.")] = None
    fault: Fault = None


class ShownTiers(BaseModel):
    """All tiers of a model."""

    model: str
    tiers: list[ShownTier]


class ShownMoves(BaseModel):
    """A tier's moves, newest first."""

    tier: str
    moves: int
    history: list[Move]


class ShownSignature(BaseModel):
    """Who vouches for a schedule's document. Without trusted keys nothing is verified: `signers` is who claims to."""

    signers: Annotated[list[str], Field(description="Ids of the keys whose signatures lie beside the document.")]
    state: Literal["unsigned", "not_verified", "trusted", "untrusted", "tampered"]
    by: Annotated[str | None, Field(description="The trusted key whose signature holds.")] = None
    text: Annotated[str, Field(description="The same in words.")]


class ShownSchedule(BaseModel):
    """A schedule with all that is known of it."""

    model: str
    digest: Digest
    versions: Annotated[list[int], Field(description="Under which numbers it was published, of those looked at.")]
    tiers: list[str]
    figures: ShownFigures
    signature: ShownSignature
    artifacts: Annotated[list[str], Field(description="Names of the files beside it.")]
    document: Schedule


class ShownDifference(BaseModel):
    """What changes from schedule a to schedule b."""

    a: ShownFigures
    b: ShownFigures
    same: bool
    steps: Annotated[list[int] | None, Field(description="Steps that differ; null where their numbers differ.")]
    segments: list[dict[str, Any]] | None
    fields: Annotated[dict[str, tuple[Any, Any]], Field(description="Other parts of the identity that differ: a's and b's.")]
    figures: Annotated[dict[str, tuple[float | None, float | None]], Field(description="a's and b's.")]


class ShownExperiment(BaseModel):
    """An experiment: its declaration, its state and what was done with it."""

    name: str
    status: Status
    version: int
    stage: int
    share: Annotated[float, Field(description="Per cent of the tier's units that are enrolled now; 0 unless it runs.")]
    transitions: Annotated[int, Field(description="Length of its history: an action says it back, and is refused if it grew.")]
    history: Annotated[list[Transition], Field(description="Newest first.")]
    declaration: Experiment


class ShownExperiments(BaseModel):
    """All experiments of a model."""

    model: str
    experiments: list[ShownExperiment]
    faults: Annotated[list[str], Field(description="Experiments whose documents cannot be read, and why.")]
