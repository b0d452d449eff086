"""The unit of a request: the user or session that an experiment keeps in one arm."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from registry.errors import InvalidInput

HEADER = "X-Flexi-Unit"
PATTERN = r"^([!-~][ -~]{0,127})?$"  # what every proxy passes on unchanged; the body's fields take any text


def unit_of(said: str | None, headers: Headers) -> str | None:
    """What the body says, or else the header; empty ones count as none.

    Raises `InvalidInput` for a header outside its limits, used or not.
    """
    given = headers.get(HEADER)
    if given is not None and not re.fullmatch(PATTERN, given):
        raise InvalidInput("at most 128 printable ASCII characters; other text in the body", param=HEADER)
    return said or given or None
