"""The images API of OpenAI, for clients that speak it already: `quality` chooses the tier."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from starlette.datastructures import Headers

from engine.guidance import MAX_SCALE
from registry.document import misfit
from registry.errors import InvalidInput, NotFound
from server.api import AUTO, MAX_DEADLINE, MAX_PROMPT, GenerateRequest, GenerateResponse, together
from server.http.unit import unit_of
from server.request_body import CLIENTS, GIVEN, WHOLE, RequestBody
from server.request_fields import (
    LOSSLESS,
    FileFormat,
    Loras,
    Lossless,
    OutputCompression,
    OutputFormat,
    ResponseFormat,
    ScheduleRef,
    Seed,
    Size,
    Syntax,
    WhenServed,
)

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
TIERS: dict[Quality, str] = {
    "auto": AUTO,
    "low": "draft",
    "medium": "balanced",
    "standard": "balanced",
    "high": "best",
    "hd": "best",
    "xhigh": "best",
    "max": "reference",
}
QUALITIES: dict[str, Quality] = {"draft": "low", "fast": "low", "balanced": "medium", "best": "high", "reference": "max"}
MAX_PREVIEWS = 3
PREFERRED: dict[str, JsonValue] = {"enum": [quality for quality in TIERS if quality != "auto"]}
REFUSED: list[JsonValue] = [  # what `_fits_together` refuses
    together(tier=GIVEN, schedule=GIVEN),
    together(quality=PREFERRED, tier=GIVEN),
    together(quality=PREFERRED, schedule=GIVEN),
]
FITTING: dict[str, Any] = {  # the same in JSON Schema, and what is refused of a stream, and of anything else
    "not": {"anyOf": REFUSED},
    "if": together(stream={"const": True}),
    "then": {"properties": {"response_format": {"not": {"const": "url"}}}},
    "else": {"properties": {"partial_images": {"enum": [None, "", 0]}, "progress": {"enum": [None, "", False]}}},
}


class ImagesRequest(RequestBody):
    """`POST /v1/images/generations`. From `seed` on, fields are this server's own: `extra_body` of the official client."""

    model_config = CLIENTS | ConfigDict(json_schema_extra=FITTING)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, description="What to draw.")]
    model: Annotated[str | None, Field(max_length=128, description="A name of GET /v1/models, or nothing.")] = None
    n: Annotated[int | None, Field(ge=1, description="How many images."), WHOLE] = None
    size: Size = None
    quality: Annotated[
        Quality | None,
        Field(
            description="low, medium (or standard), high (or hd, xhigh) and max are the tiers draft, balanced, best and "
            "reference; auto is `auto`."
        ),
    ] = None
    response_format: Annotated[
        ResponseFormat | None,
        Field(
            description="`url` can be fetched for a while. Absent, it is `url` for a model called dall-e-…, else `b64_json`."
        ),
    ] = None
    output_format: OutputFormat = LOSSLESS
    output_compression: OutputCompression = 100
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Images have no alpha channel.")] = None
    moderation: Annotated[Literal["auto", "low"] | None, Field(description="Accepted; this server moderates nothing.")] = None
    stream: Annotated[bool | None, Field(description="Answer by server-sent events, each image as soon as it is done.")] = None
    partial_images: Annotated[
        int | None, Field(ge=0, le=MAX_PREVIEWS, description="Previews of each image on the way; needs `stream`."), WHOLE
    ] = None
    safety_identifier: Annotated[
        str | None, Field(max_length=128, description="User or session, for experiments; `user` counts where it is empty.")
    ] = None
    user: Annotated[str | None, Field(max_length=128, description="User or session, by an older name.")] = None
    seed: Seed = None
    tier: Annotated[str | None, Field(min_length=1, max_length=64, description="A tier by name, instead of `quality`.")] = None
    schedule: Annotated[ScheduleRef | None, Field(description="A version number or a digest, instead of both.")] = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, description="What to keep away from.")] = ""
    guidance_scale: Annotated[float | None, Field(ge=0, le=MAX_SCALE, description="How strongly the prompt pulls.")] = None
    prompt_syntax: Syntax = None
    loras: Loras = None
    deadline_ms: Annotated[
        int | None, Field(ge=1, le=MAX_DEADLINE, description="Give up after so many milliseconds, with status 504."), WHOLE
    ] = None
    lossless: Lossless = False
    priority: WhenServed = "normal"
    progress: Annotated[
        bool, Field(description="An event with the plan at first, and one for each computed step; needs `stream`.")
    ] = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        chosen = [name for name in ("quality", "tier", "schedule") if getattr(self, name) is not None]
        if self.quality == "auto":  # which some clients always say
            chosen.remove("quality")
        if len(chosen) > 1:
            raise misfit("give one of quality, tier and schedule", chosen[1])
        if self.partial_images and not self.stream:
            raise misfit("only with stream true", "partial_images")
        if self.progress and not self.stream:
            raise misfit("only with stream true", "progress")
        if self.response_format == "url" and self.stream:
            raise misfit("the events of a stream hold b64_json", "response_format")
        return self

    @property
    def wants_urls(self) -> bool:
        """Whether images are answered as URLs: as OpenAI's dall-e models do by default, and no other."""
        if self.response_format is None:
            return not self.stream and "dall-e-" in (self.model or "")
        return self.response_format == "url"

    def generate_request(
        self, names: Sequence[str], tiers: Collection[str], max_images: int, headers: Headers
    ) -> GenerateRequest:
        """The same in this server's own words.

        Raises `InvalidInput` for what this server or its model does not do, `NotFound` for a quality whose tier there is not.
        names: what the model may be called, its own name first. tiers: those in force.
        """
        if self.model not in (None, *names):
            raise InvalidInput(unknown_model(names), param="model")
        if (self.n or 1) > max_images:
            raise InvalidInput(f"the limit is {max_images}", param="n")
        tier = None if self.schedule else self.tier or TIERS[self.quality or "auto"]
        if self.quality and not self.tier and tier not in (None, AUTO, *tiers):
            raise NotFound(
                f"{self.quality} means the tier {tier}, which is not here; there are {sorted(tiers)}", param="quality"
            )
        return GenerateRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            tier=tier,
            schedule=self.schedule,
            seed=self.seed,
            size=self.size,
            num_images=self.n or 1,
            guidance_scale=self.guidance_scale,
            prompt_syntax=self.prompt_syntax,
            loras=self.loras,
            unit=unit_of(self.safety_identifier or self.user, headers),
            deadline_ms=self.deadline_ms,
            output_format=self.output_format,
            output_compression=self.output_compression,
            lossless=self.lossless,
            priority=self.priority,
            response_format="url" if self.wants_urls else "b64_json",
        )


class ImageData(BaseModel):
    """One image of an answer."""

    b64_json: Annotated[str, Field(description="An image file in base64; its metadata hold the parameters.")]


class ImageUrl(BaseModel):
    """One image of an answer, for clients that read URLs."""

    url: Annotated[str, Field(description="Of the file until `expires_at`; a data: URL of the whole file where none is kept.")]


class ImageAttributes(BaseModel):
    """What OpenAI's answers say of how an image was made."""

    background: Literal["opaque"] = "opaque"
    output_format: FileFormat
    quality: Quality
    size: str


class ImagesAnswer(ImageAttributes, GenerateResponse):
    """OpenAI's answer, and beside it everything that `/generate` answers but the images, which are in `data`."""

    created: Annotated[int, Field(description="Unix time in seconds.")]
    data: list[ImageData] | list[ImageUrl]
    images: Annotated[list[str], Field(exclude=True)]


class LoraOffer(BaseModel):
    """A LoRA that requests of a model may name."""

    name: str
    digest: Annotated[str, Field(description="SHA-256 of its file when the server started, in hex.")]
    layers: Annotated[dict[str, int], Field(description="How many layers of each network it changes.")]


class ModelView(BaseModel):
    """A model as OpenAI's clients list it."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When this server began to serve it, in Unix time.")]
    owned_by: str = "flexiffusion-serve"
    root: Annotated[str, Field(description="The model's own name; `id` may be another one that clients call it by.")]
    state: Annotated[
        Literal["loaded", "loading", "unloaded", "failed"],
        Field(description="Whether it is in memory. An unloaded one is loaded for the first request that names it."),
    ]
    fault: Annotated[str | None, Field(description="Why it cannot be served.")]
    load_seconds: Annotated[float | None, Field(description="What loading it took the last time.")]
    memory_bytes: Annotated[int, Field(description="What its weights and its slots take while it is loaded.")]
    sizes: Annotated[list[str], Field(description="Those that requests may ask for, WIDTHxHEIGHT; its own first.")]
    tiers: Annotated[list[str], Field(description="The tiers in force, cheapest first.")]
    loras: Annotated[list[LoraOffer], Field(description="Those that `loras` of a request may name.")]


class ModelsView(BaseModel):
    """The models that this server has, each once for each name that clients may call it by; the default first."""

    object: Literal["list"] = "list"
    data: list[ModelView]


def unknown_model(names: Sequence[str]) -> str:
    """The refusal of a model that is called by another name."""
    return f"this server has {', '.join(names)}; its operator can allow other names by FLEXI_MODEL_ALIASES"


def answer(made: GenerateResponse, are_urls: bool, created: int | None = None) -> ImagesAnswer:
    """The answer to `/generate` in the form that OpenAI's clients read.

    are_urls: its images. created: when they were made, in Unix time; now, if absent.
    """
    data: list[ImageData] | list[ImageUrl] = (
        [ImageUrl(url=image) for image in made.images] if are_urls else [ImageData(b64_json=image) for image in made.images]
    )
    created = int(time.time()) if created is None else created
    return ImagesAnswer(**made.model_dump(), data=data, created=created, quality=quality_of(made.tier))


def quality_of(tier: str | None) -> Quality:
    """What OpenAI's answers call it."""
    return QUALITIES.get(tier or "", "auto")
