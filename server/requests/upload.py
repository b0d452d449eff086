"""Images that clients send, in base64."""

from __future__ import annotations

from base64 import b64decode

from engine.input_image import InputImage, opened
from registry.errors import InvalidInput
from server.request_fields import MAX_BASE64, MAX_UPLOAD


def decoded(text: str, field: str) -> InputImage:
    """Of a file in base64, or a data: URL of one. Raises `InvalidInput` naming the field and what is wrong with it."""
    head, comma, rest = text.partition(",")
    if comma:
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise InvalidInput("must be base64, or a data: URL in base64", param=field)
        text = rest
    elif text[:8].lower().startswith(("http:", "https:", "file:")):
        raise InvalidInput("this server fetches nothing: send the file itself, in base64 or as a data: URL", param=field)
    if len(text) > MAX_BASE64:
        raise _too_large(field)
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise InvalidInput("is not valid base64", param=field) from None
    if len(data) > MAX_UPLOAD:
        raise _too_large(field)
    return opened(data, field)


def _too_large(field: str) -> InvalidInput:
    return InvalidInput(f"must be a file of at most {MAX_UPLOAD // 2**20} MiB", param=field)
