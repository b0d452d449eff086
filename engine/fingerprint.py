"""The fingerprint of a model: which weights and configuration a schedule was made for. Computed once, kept beside them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from registry.files import replace_file

KEPT = ".fingerprint.json"  # in the model's folder; no file whose name begins so is a part of the fingerprint
SETTLED = 2_000_000_000  # ns; a younger file may change once more within the resolution of its file system's clock
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """`sha256:` and the SHA-256 (64 hex digits) over the names and contents of these files below `root`.

    What was computed is kept in the folder, under the names, sizes and times of change of the files: while all are the same,
    nothing is read again. A folder that cannot be written to is hashed each time.
    """
    paths = {file.relative_to(root).as_posix(): file for file in sorted(files) if not file.name.startswith(KEPT)}
    stats = {name: path.stat() for name, path in paths.items()}
    seen = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    if kept := _kept(root / KEPT, seen):
        return kept
    digest = hashlib.sha256()
    for name, path in paths.items():
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name} {content}\n".encode())
    computed = f"sha256:{digest.hexdigest()}"
    if all(stat.st_mtime_ns < time.time_ns() - SETTLED for stat in stats.values()):
        with suppress(OSError):  # a folder that cannot be written to, or a full disk
            replace_file(root / KEPT, json.dumps({"fingerprint": computed, "files": seen}).encode())
    return computed


def _kept(file: Path, seen: dict[str, list[int]]) -> str | None:
    """The fingerprint kept in this file, if it was computed of the files as they are: `seen` is their size and time (ns)."""
    with suppress(OSError, ValueError, RecursionError):  # missing or damaged: it is computed again
        kept = json.loads(file.read_bytes())
        if isinstance(kept, dict) and kept.get("files") == seen and _FINGERPRINT.fullmatch(str(kept.get("fingerprint"))):
            return str(kept["fingerprint"])
    return None
