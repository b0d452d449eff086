"""The file that says what a batch is to make: a body of `/generate`, or a prompt, on each line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import InvalidInput

OURS = {"priority": "background", "response_format": "b64_json"}  # whatever a line says


@dataclass(frozen=True)
class PromptsFile:
    """bodies: by the number of their line, the first of which is 1; empty lines are none. digest: of the whole file."""

    bodies: dict[int, dict[str, Any]]
    digest: str

    @classmethod
    def read(cls, path: Path) -> PromptsFile:
        """Raises `InvalidInput` with the line that is neither an object nor a string of JSON, and `OSError`."""
        data = path.read_bytes()
        bodies = dict[int, dict[str, Any]]()
        for number, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                bodies[number] = _body(path, number, line)
        if not bodies:
            raise InvalidInput("there is no line in it", param=str(path))
        return cls(bodies, hashlib.sha256(data).hexdigest())


def _body(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"no JSON: {error}", param=f"{path}, line {number}") from None
    if isinstance(said, str):
        said = {"prompt": said}
    if not isinstance(said, dict):
        raise InvalidInput('give a body of /generate, {"prompt": …}, or a prompt, "…"', param=f"{path}, line {number}")
    return said | OURS
