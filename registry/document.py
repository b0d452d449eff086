"""Frozen documents, kept as JSON: their base, their canonical form, and what is said of one that is wrong."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
NAME_RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', of which the first is a letter or a digit"


class Document(BaseModel):
    """Frozen, strict about names: an unknown field is an error, never silently dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_name(text: str) -> bool:
    """Whether this can name a model, a tier, an arm: see `NAME_RULE`."""
    return re.fullmatch(NAME, text) is not None and not text.endswith("\n")


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def misfit(text: str, *place: str | int) -> ValidationError:
    """For validators of whole models to raise: the fault of one field, reported at its place below the model."""
    fault = InitErrorDetails(type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=place, input=None)
    return ValidationError.from_exception_data("misfit", [fault])


class Fault(NamedTuple):
    """What is wrong with a field, whose place is written with dots; an empty one means the whole document."""

    text: str
    param: str

    def __str__(self) -> str:
        return f"{self.param}: {self.text}" if self.param else self.text


def first_fault(error: ValidationError) -> Fault:
    """The first fault that pydantic reports, without the value at fault, which may be a secret."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return Fault(fault["msg"].removeprefix("Value error, "), ".".join(str(part) for part in fault["loc"]))
