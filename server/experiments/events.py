"""What happened to a request, as lines of JSON: its outcome, and what was learned of it later. Records only, no storing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from engine.image_size import PATTERN
from registry.document import Document, Name, first_fault, misfit
from registry.errors import Tampered
from registry.records import Digest, Number
from server.api import REQUEST_ID
from server.requests.assignment import Enrolment
from server.requests.covariates import Covariates

RequestId = Annotated[str, Field(pattern=REQUEST_ID)]
Seconds = Annotated[float, Field(ge=0)]
Macs = Annotated[int, Field(ge=0)]
FEEDBACK, FIDELITY = "feedback", "fidelity"  # streams of a whole model: its experiments pick theirs by request id


class OutcomeEvent(Document):
    """One request of a tier under an experiment, at its end: one line whether it ended well or not.

    Only an `enrolled` request has an arm and a hashed unit. `bypass` names its schedule itself; `fallback` says that
    something else than what the arm or tier means was used, because that could not be loaded.
    """

    event: Literal["outcome"] = "outcome"
    time: AwareDatetime
    request_id: RequestId
    enrolment: Enrolment
    model: Name | None = None  # events of earlier versions are told by their place
    experiment: Name
    version: Number
    arm: Name | None = None
    unit: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    tier: Name
    digest: Digest
    fallback: bool = False
    covariates: Covariates | None = None  # of an enrolled request; events of earlier versions have none
    size: Annotated[str, Field(pattern=PATTERN)] | None = None  # of the images; events of earlier versions do not say it
    loras: tuple[str, ...] = Field(default=(), exclude_if=lambda loras: not loras)  # each as name:scale
    repeats: int = Field(default=0, ge=0, exclude_if=lambda images: not images)  # images that were made before
    outcome: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]  # "ok", or the code of the error
    queue_seconds: Seconds
    service_seconds: Seconds
    macs_planned: Macs
    macs_executed: Macs
    unet_rows: Annotated[int, Field(ge=1)]  # of one step of all its images: guidance takes two each
    steps_planned: Annotated[int, Field(ge=0)]
    steps_executed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _enrolled_in_an_arm(self) -> Self:
        for field in ("arm", "unit"):
            if self.enrolment == "enrolled" and getattr(self, field) is None:
                raise misfit("an enrolled request has one", field)
        if self.enrolment != "enrolled" and (self.arm or self.unit):
            raise misfit(f"only an enrolled request has an arm and a unit, this one is {self.enrolment}", "arm")
        return self


class RatingEvent(Document):
    """What a client thought of a finished request, from 0 (bad) to 1 (good)."""

    event: Literal["rating"] = "rating"
    time: AwareDatetime
    request_id: RequestId
    rating: Annotated[float, Field(ge=0, le=1)]


class FidelityEvent(Document):
    """A finished request held against the teacher's image of the same prompt and noise. PSNR in dB, 100 for the same image."""

    event: Literal["fidelity"] = "fidelity"
    time: AwareDatetime
    request_id: RequestId
    psnr: Annotated[float, Field(le=100)]
    feature_distance: Annotated[float, Field(ge=0)] | None = None
    rfid: float | None = None  # of the newest images of its arm on this server, where this one caused it to be computed


class ImageFigures(Document):
    """One image of a pair. macs: of its UNet calls; seconds: of its waves, where it was alone; else as in `FidelityEvent`."""

    macs: Macs
    seconds: Seconds
    psnr: Annotated[float, Field(le=100)]
    feature_distance: Annotated[float, Field(ge=0)] | None = None
    rfid: float | None = None


class PairEvent(Document):
    """An image of a tier that its candidate made again, beside what the tier meant when it was served: `digest`.

    Without images the candidate's failed, with the code `failed`.
    """

    event: Literal["pair"] = "pair"
    time: AwareDatetime
    request_id: RequestId
    model: Name
    tier: Name
    digest: Digest
    candidate: Digest
    size: Annotated[str, Field(pattern=PATTERN)]
    images: tuple[ImageFigures, ImageFigures] | None = None  # by `digest`, and by `candidate`
    failed: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")] | None = None


Event = OutcomeEvent | RatingEvent | FidelityEvent | PairEvent
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def stream(name: str) -> str:
    """The stream that the outcomes of an experiment go to."""
    return f"experiments/{name}/events"


def pair_stream(tier: str) -> str:
    """The stream that the pairs of a tier's candidates go to."""
    return f"candidates/{tier}/events"


def write(events: Iterable[Event]) -> bytes:
    """One line of JSON for each event, UTF-8, each ended by a newline."""
    return b"".join(event.model_dump_json(exclude_none=True).encode() + b"\n" for event in events)


def read(key: str, data: bytes) -> Iterator[Event]:
    """The events of the lines stored under `key`, or `Tampered` naming the line: only this program writes these."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield _EVENT.validate_json(line)
        except ValidationError as error:
            raise Tampered(f"line {number} is not an event: {first_fault(error)}", param=key) from error
