"""What schemathesis has to be told (SCHEMATHESIS_HOOKS), for JSON Schema has no words for it.

Strings of the format `image-file` are image files: others are refused, as they should be. Forms are left to
tests/e2e/test_edits.py. A LoRA is named once. A mask and a strength come with an image only. A request whose prompts weigh
words gets prompts without brackets, so that being allowed still means being answered: what brackets that do not fit together
come to is tested where they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import strategies as st

from server.request_fields import TINY_PNG

FILES = (TINY_PNG, f"data:image/png;base64,{TINY_PNG}")
ALLOWED: dict[str, Callable[[Any], bool]] = {
    "mask": FILES.__contains__,
    "strength": lambda value: type(value) in (int, float) and 0 < value <= 1,
}
BRACKETS = str.maketrans("()[]", "....")

schemathesis.openapi.format("image-file", st.sampled_from(FILES))


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    raw_schema["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"].pop("multipart/form-data")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("body"), dict):  # of a job
        return body | {"body": map_body(context, body["body"])}
    if not body.get("image"):  # what is wrong in itself stays, to be refused
        body = {field: value for field, value in body.items() if not ALLOWED.get(field, lambda _: False)(value)}
    if isinstance(body.get("loras"), list):
        body = body | {"loras": _each_once(body["loras"])}
    if body.get("prompt_syntax") != "webui":
        return body
    texts = {field: body[field] for field in ("prompt", "negative_prompt") if isinstance(body.get(field), str)}
    return body | {field: text.translate(BRACKETS) for field, text in texts.items()}


def _each_once(wishes: list[Any]) -> list[Any]:
    """The first wish for each LoRA; what is none stays, to be refused."""
    named = [wish.get("name") if isinstance(wish, dict) else None for wish in wishes]
    return [wish for i, wish in enumerate(wishes) if not isinstance(named[i], str) or named[i] not in named[:i]]
