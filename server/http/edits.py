"""OpenAI's image edits: a form, as its clients send it, or the same fields as JSON."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any

from pydantic import Field, JsonValue, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from typing_extensions import override

from registry.document import first_fault
from registry.errors import InvalidInput
from server.api import GenerateRequest
from server.errors import BodyTooLarge
from server.http.body import FORM
from server.http.openai import ImagesRequest
from server.request_fields import MAX_UPLOAD, FileText, MaskFile, Strength

FILES = ("image", "mask")
NUMBERS = ("n", "seed", "output_compression", "partial_images", "deadline_ms", "guidance_scale", "strength")
MAX_FIELDS = 64
MAX_TEXT = 128 * 1024  # bytes of a field that is no file
SWITCHES: dict[str, JsonValue] = {"true": True, "false": False}
BOOLEANS = ("stream", "lossless", "progress")
OBJECTS = ("loras",)  # which a form has as JSON
LORAS = '[{"name": "grey", "scale": 0.8}]'


class EditsRequest(ImagesRequest):
    """`POST /v1/images/edits`: `POST /v1/images/generations` from an image. `strength` is this server's own, as `seed` is."""

    image: Annotated[FileText, Field(min_length=1, description="The file to start from. Transparent parts are painted anew.")]
    mask: MaskFile = None
    strength: Strength = None

    @override
    def generate_request(self, names: Any, tiers: Any, max_images: int, headers: Headers) -> GenerateRequest:
        request = super().generate_request(names, tiers, max_images, headers)
        return request.model_copy(update={"image": self.image, "mask": self.mask, "strength": self.strength})


async def edits_request(request: Request) -> EditsRequest:
    """What a request's body says, whichever kind it is. Raises `InvalidInput` naming the field."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        try:
            async with request.form(max_files=8, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT) as form:
                said = await _fields(form)
        except HTTPException as error:  # as starlette says within an app that a form is broken
            raise InvalidInput(error.detail, param="body") from None
        except UnicodeError as error:  # of what its `charset` names, which is whatever Python has a codec for
            raise InvalidInput(f"cannot be decoded: {error}", param="body") from None
    else:
        body = await request.body()
        if not body:
            raise InvalidInput("must be a JSON object or a form", param="body")
        said = from_json(body)
    try:
        return EditsRequest.model_validate(said)
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(fault.text, param=fault.param or "body") from None


def form_schema(body: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of the form, from that of the JSON body: the same fields, of which no one can be null."""
    return body | {"title": "EditsForm", "properties": {name: _in_form(name, of) for name, of in body["properties"].items()}}


def _in_form(name: str, of: dict[str, Any]) -> dict[str, Any]:
    about = {key: of[key] for key in ("title", "description", "default") if of.get(key) is not None}
    given = of["anyOf"][0] if "anyOf" in of else {key: value for key, value in of.items() if key not in about}
    if name in FILES:
        return about | {"type": "string", "format": "binary"}
    if name in OBJECTS:
        return about | {"type": "string", "contentMediaType": "application/json", "contentSchema": given}
    return about | given


async def _fields(form: FormData) -> dict[str, Any]:
    """The form's fields as JSON would have them: files in base64, numbers and switches as such."""
    fields = dict[str, Any]()
    for name, value in form.multi_items():
        if name.removesuffix("[]") == "image" and ("image" in fields or name == "image[]"):
            if "image" in fields:
                raise InvalidInput("this server starts from one image: several cannot be combined", param="image")
            name = "image"
        if (of := name.partition("[")[0]) in OBJECTS and of != name:  # as clients send a list of objects
            raise InvalidInput("in a form it is one text field with JSON, such as " + LORAS, param=of)
        if isinstance(value, UploadFile):
            if name not in FILES:
                raise InvalidInput("a file where none is taken", param=name[:64])
            fields[name] = await _base64(value, name)
        elif name in FILES:
            fields[name] = value
        elif name in (*NUMBERS, *OBJECTS):
            fields[name] = _read(value)
        else:
            fields[name] = SWITCHES.get(value, value) if name in BOOLEANS else value
    return fields


async def _base64(file: UploadFile, name: str) -> str:
    if (file.size or 0) > MAX_UPLOAD:
        raise BodyTooLarge(f"must be a file of at most {MAX_UPLOAD // 2**20} MiB", param=name)
    return b64encode(await file.read()).decode()


def _read(text: str) -> object:
    """What stands there in JSON, or the text where that is none: then the field's own refusal says so."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
