"""What clients send and get, with bounds. Unknown fields are refused, and error texts never repeat what was sent."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, JsonValue, model_validator

from engine.guidance import MAX_SCALE
from registry.document import misfit
from registry.schedule import Fidelity, Schedule
from server.request_body import CLIENTS, GIVEN, WHOLE, RequestBody
from server.request_fields import (
    LOSSLESS,
    FileFormat,
    ImageFile,
    Loras,
    Lossless,
    MaskFile,
    OutputCompression,
    OutputFormat,
    ResponseFormat,
    ScheduleRef,
    Seed,
    Size,
    Strength,
    Syntax,
    WhenServed,
)

MAX_PROMPT = 4000  # characters, as Unicode code points: what OpenAI's dall-e-3 takes
MAX_DEADLINE = 24 * 3600 * 1000  # milliseconds
AUTO = "auto"  # the tier that the server chooses itself
REQUEST_ID = r"^[A-Za-z0-9._-]{1,64}$"


def together(**fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """JSON Schema for objects that have all of these fields, and each fits its schema."""
    return {"required": list(fields), "properties": dict(fields)}


REFUSED = together(tier=GIVEN, schedule=GIVEN)  # what `_fits_together` refuses; BentoML's own document could not hold it


class GenerateRequest(RequestBody):
    """One prompt, one or several images. Give a `tier` or a `schedule`, or neither for the default tier."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, description="What to draw.")]
    negative_prompt: Annotated[
        str, Field(max_length=MAX_PROMPT, description="What to keep away from; without effect at guidance_scale 1.")
    ] = ""
    tier: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            description="One of GET /v1/tiers, or `auto`: the dearest below `reference` predicted to keep `deadline_ms`.",
        ),
    ] = None
    schedule: Annotated[
        ScheduleRef | None,
        Field(description="A version number, a digest, or a digest's first 8 hex digits or more."),
    ] = None
    model: Annotated[str | None, Field(max_length=128, description="A name of GET /v1/models; without it, the first.")] = None
    seed: Seed = None
    size: Size = None
    num_images: Annotated[int, Field(ge=1, description="How many images."), WHOLE] = 1
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_SCALE,
            description="How strongly the prompt pulls; without it, what the tier was validated at. 1 or less switches "
            "guidance off and halves the cost.",
        ),
    ] = None
    prompt_syntax: Syntax = None
    loras: Loras = None
    unit: Annotated[str | None, Field(min_length=1, max_length=128, description="User or session, for experiments.")] = None
    deadline_ms: Annotated[
        int | None, Field(ge=1, le=MAX_DEADLINE, description="Give up after so many milliseconds, with status 504."), WHOLE
    ] = None
    output_format: OutputFormat = LOSSLESS
    output_compression: OutputCompression = 100
    lossless: Lossless = False
    response_format: Annotated[
        ResponseFormat, Field(description="`images` are files in base64, or URLs from which they can be fetched for a while.")
    ] = "b64_json"
    priority: WhenServed = "normal"
    image: ImageFile = None
    mask: MaskFile = None
    strength: Strength = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("mask", "strength"):
            if self.image is None and getattr(self, name) is not None:
                raise misfit("only with image", name)
        if self.tier is not None and self.schedule is not None:
            raise misfit("give a tier or a schedule, not both", "schedule")
        return self


class Steps(BaseModel):
    """Steps of one image. Null steps are jumped over."""

    full: int
    partial: int
    null: int


class RequestWarning(BaseModel):
    """A wish that was not met, though the images were made."""

    code: Annotated[str, Field(description="Stable and machine-readable.")]
    message: str


class LoraView(BaseModel):
    """A LoRA that was added to the model."""

    name: str
    scale: float
    digest: Annotated[str, Field(description="SHA-256 of its file, in hex.")]


class GenerateResponse(BaseModel):
    """The images, and what they cost."""

    images: Annotated[
        list[str], Field(description="Image files in base64, or their URLs; the files' metadata hold the parameters.")
    ]
    expires_at: Annotated[int | None, Field(description="When the URLs end, in Unix time in seconds.")] = None
    output_format: Annotated[FileFormat, Field(description="Of the files.")]
    size: Annotated[str, Field(description="Of the images, WIDTHxHEIGHT in pixels.")]
    prompt_chunks: Annotated[int, Field(description="Of the text encoder's length, that the longer of the prompts takes.")] = 1
    loras: Annotated[list[LoraView], Field(description="Those that the model had, by name.")] = []
    request_id: str
    model: str
    tier: Annotated[str | None, Field(description="Null when the request named a schedule.")]
    schedule: Annotated[str, Field(description="Digest of the schedule that made the images.")]
    version: Annotated[int | None, Field(description="The registry's number of it, where known.")]
    experiment: Annotated[str | None, Field(description="The experiment that the request took part in, if any.")] = None
    arm: Annotated[str | None, Field(description="Which of its arms made the images.")] = None
    seed: Annotated[int, Field(description="Of the first image; image i has seed + i.")]
    macs: Annotated[int, Field(description="UNet MACs executed for all images, guidance rows included.")]
    macs_per_image: int
    relative_cost: Annotated[float, Field(description="MACs relative to the teacher's at the same size, from the same start.")]
    steps: Annotated[Steps, Field(description="Of an image that was made; of repeats, none ran.")]
    predicted_ms: Annotated[float, Field(description="When the images should be there, as predicted on arrival.")]
    queue_ms: Annotated[float, Field(description="Longest wait of an image before the engine took it in.")]
    strength: Annotated[float | None, Field(description="Of an image that started from another one, else null.")] = None
    denoise_ms: Annotated[float, Field(description="Longest time of an image in the engine, other stages excluded.")]
    repeats: Annotated[
        list[int], Field(description="Which images, from 0 on, were made before: nothing ran for them, and they cost nothing.")
    ] = []
    marked: Annotated[
        bool, Field(description="Whether the files hold a signed manifest (C2PA), which says that they were generated.")
    ] = False
    warnings: Annotated[list[RequestWarning], Field(description="Wishes that were not met.")] = []


class TierView(BaseModel):
    """What a tier means now."""

    tier: str
    digest: str
    version: int | None
    steps: Steps
    relative_cost: float
    macs: Annotated[int, Field(description="Of one image of the model's own size at `default_guidance`.")]
    predicted_ms: Annotated[float, Field(description="When such an image would be there, if it were asked for now.")]
    fidelity: Fidelity | None
    default_guidance: Annotated[float, Field(description="The guidance_scale of requests that name none.")]
    validated_guidance: Annotated[list[float], Field(description="The scales that it was measured at, where that is known.")]
    validated_sizes: Annotated[list[str], Field(description="The sizes that it was measured at, WIDTHxHEIGHT in pixels.")]


class UnservedTier(BaseModel):
    """A tier of the registry that this server does not serve."""

    tier: str
    reason: Annotated[str, Field(description="Why what the registry says of it was refused.")]


class TiersView(BaseModel):
    """All tiers in force, cheapest first, and those that are not."""

    model: str
    default: str
    sizes: Annotated[list[str], Field(description="Those that requests may ask for, WIDTHxHEIGHT; the model's own first.")]
    max_images: Annotated[int, Field(description="How many images one request may ask for.")]
    prompt_kind: Annotated[
        Literal["text", "class", "none"],
        Field(description="What the model reads a prompt as. It ignores any of kind `none`, though a request must have one."),
    ]
    classes: Annotated[list[str], Field(description="What a prompt of kind `class` may be; the numbers from 0 on are, too.")]
    guides: Annotated[
        bool, Field(description="Whether it can be guided: by `guidance_scale`, and away from a negative prompt.")
    ]
    examples: Annotated[list[str], Field(description="Prompts that show the model, from `examples.txt` of its folder.")]
    prompt_chunks: Annotated[int, Field(description="How many chunks of the text encoder's length are read of a prompt.")]
    prompt_syntaxes: Annotated[list[str], Field(description="Values of prompt_syntax, the default first.")]
    loras: Annotated[list[str], Field(description="Names that `loras` may say; GET /v1/models says more of them.")]
    tiers: list[TierView]
    not_served: list[UnservedTier]
    warnings: Annotated[list[RequestWarning], Field(description="What an operator should mend or know.")]


class AliveView(BaseModel):
    """The process works."""

    alive: Literal[True] = True


class ReadyView(BaseModel):
    """Requests are taken, and for what."""

    ready: Literal[True] = True
    model: str
    default: Annotated[str, Field(description="The tier of requests that name none.")]
    tiers: Annotated[list[str], Field(description="The tiers in force, cheapest first.")]
    warnings: Annotated[list[RequestWarning], Field(description="As in GET /v1/tiers.")]


class ScheduleView(BaseModel):
    """A schedule with the two things its document does not say about itself."""

    digest: str
    version: int | None
    schedule: Schedule


class Feedback(BaseModel):
    """What a client thinks of a finished request."""

    model_config = CLIENTS

    request_id: Annotated[str, Field(pattern=REQUEST_ID, description="Of the answer.")]
    rating: Annotated[float, Field(ge=0, le=1, description="From 0 (bad) to 1 (good).")]


class Accepted(BaseModel):
    """The rating was accepted and will be recorded."""

    accepted: bool = True


class ArmView(BaseModel):
    """A schedule under test."""

    name: str
    schedule: str
    weight: int


class ExperimentView(BaseModel):
    """An experiment that splits traffic."""

    model: Annotated[str, Field(description="Whose traffic.")]
    name: str
    version: int
    tier: str
    share: Annotated[float, Field(description="Per cent of the tier's units that are enrolled.")]
    arms: list[ArmView]


class ExperimentsView(BaseModel):
    """All experiments that split traffic."""

    experiments: list[ExperimentView]


class CancelView(BaseModel):
    """How many requests were cancelled."""

    cancelled: int


class ErrorBody(BaseModel):
    """Why a request was not answered."""

    code: Annotated[str, Field(description="Stable and machine-readable.")]
    message: str
    param: Annotated[str | None, Field(description="The field or object at fault.")]
    request_id: str


class ErrorView(BaseModel):
    """Every error of this server looks like this."""

    error: ErrorBody
