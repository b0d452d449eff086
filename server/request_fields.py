"""The fields that several routes take of a request, with their bounds."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from typing_extensions import override

from engine.prompt_syntax import PromptSyntax
from server.request_body import WHOLE, RequestBody

MAX_IMAGES = 64  # in one request, whatever FLEXI_MAX_IMAGES says
MAX_SEED = 2**63 - MAX_IMAGES  # the last image of a request still has a seed of 63 bits
TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="  # a white pixel
MAX_UPLOAD = 8 * 2**20  # bytes of an image file
MAX_BASE64 = (MAX_UPLOAD + 2) // 3 * 4 + 64  # characters of one in base64, with the beginning of a data: URL
FileFormat = Literal["png", "jpeg", "webp"]
LOSSLESS: FileFormat = "png"  # and the default
ResponseFormat = Literal["b64_json", "url"]
Priority = Literal["normal", "background"]
BACKGROUND: Priority = "background"
LORA_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_LORAS = 4  # of one request
MAX_LORA_SCALE = 4.0

Seed = Annotated[
    int | None,
    Field(ge=-1, le=MAX_SEED, description="Image i uses seed + i. Drawn at random if -1 or absent; the answer says which."),
    WHOLE,
    AfterValidator(lambda seed: None if seed == -1 else seed),
]

REF = r"^([0-9]{1,7}|[0-9a-f]{8,64})$"  # never a tier's name: those mean something else tomorrow
LAST_VERSION = 9_999_999  # that such a reference can name


def _reference(given: object) -> str:
    number = isinstance(given, int) and not isinstance(given, bool) and given <= LAST_VERSION  # a longer one may lack zeros
    ref = str(given) if number else given
    if not isinstance(ref, str) or not re.fullmatch(REF, ref):
        raise ValueError("must be a version number, a digest or a digest's first 8 hex digits or more; a tier goes into tier")
    return ref


ScheduleRef = Annotated[
    str,
    BeforeValidator(_reference),
    WHOLE,
    WithJsonSchema({"type": ["string", "integer"], "pattern": REF, "minimum": 0, "maximum": LAST_VERSION}),
]
Size = Annotated[
    str | None,
    Field(
        max_length=32,
        description="WIDTHxHEIGHT in pixels, one of GET /v1/tiers; without it, or with `auto`, the model's own size, or that "
        "nearest to the image to start from.",
    ),
]
Syntax = Annotated[
    PromptSyntax | None,
    Field(
        description="Of prompt and negative_prompt: `plain` text, or `webui`, where (word), (word:1.3) and [word] weigh words; "
        "without it, the server's default."
    ),
]
OutputFormat = Annotated[FileFormat, Field(description="Of the image files; their metadata hold the parameters.")]
OutputCompression = Annotated[
    int, Field(ge=0, le=100, description="Per cent of quality that jpeg and webp files keep. png files lose nothing."), WHOLE
]
WhenServed = Annotated[
    Priority, Field(description="`background` waits while there is any other work, and never delays it by more than a wave.")
]
Lossless = Annotated[bool, Field(description="Files that lose nothing: webp can, png always does, jpeg cannot.")]


FileText = Annotated[str, Field(max_length=MAX_BASE64, json_schema_extra={"format": "image-file", "examples": [TINY_PNG]})]
ImageFile = Annotated[
    FileText | None,
    Field(
        description="A PNG, JPEG or WebP file to start from, in base64 or as a data: URL. Without a mask, what is transparent "
        "is painted anew."
    ),
]
MaskFile = Annotated[
    FileText | None,
    Field(description="A file as large as the image: what is white, or transparent, is painted anew, the rest stays."),
]
Strength = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="How much is made anew: the share of the steps that run. 0.8 if absent, with a mask 1.",
    ),
]


class LoraWish(RequestBody):
    """A LoRA, and how much of it."""

    name: Annotated[str, Field(pattern=LORA_NAME, description="One of `loras` in GET /v1/models.")]
    scale: Annotated[
        float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, description="What its change is multiplied with; 0 leaves it out.")
    ] = 1.0

    @classmethod
    @override
    def _advice(cls, name: str) -> str:
        return next((f"use {field}" for field, others in _LORA_WORDS.items() if name in others), super()._advice(name))


_LORA_WORDS = {  # for what other programs call a LoRA's fields
    "name": ("adapter", "adapter_name", "file", "id", "lora", "model", "path", "weights"),
    "scale": ("alpha", "lora_scale", "multiplier", "strength", "weight"),
}
LoraList = Annotated[
    list[LoraWish], Field(max_length=MAX_LORAS, json_schema_extra={"examples": [[{"name": "grey", "scale": 0.8}]]})
]
Loras = Annotated[
    LoraList | None, Field(description="LoRAs to add to the model for this request, each named once, in any order.")
]
