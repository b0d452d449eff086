"""The fingerprint of a model: which weights and configuration a schedule was made for. Computed once, kept beside them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from registry.errors import Conflict
from registry.files import replace_file

KEPT = ".fingerprint.json"  # in the model's folder; no file whose name begins so is a part of the fingerprint
SETTLED = 2_000_000_000  # ns; a younger file may change once more within the resolution of its file system's clock
FORMAT = 2  # of what is kept; the first one knew sizes and times of modification only, which copying tools restore
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


def fingerprint(root: Path, files: Iterable[Path], kept_in: str = KEPT) -> str:
    """`sha256:` and the SHA-256 (64 hex digits) over the names and contents of these files below `root`.

    What was computed is kept in the folder, with the `states` of the files: while all are the same, nothing is read again.
    A folder that cannot be written to is hashed each time. Raises `Conflict` for a file that changes meanwhile.
    """
    paths = {file.relative_to(root).as_posix(): file for file in sorted(files) if not file.name.startswith(KEPT)}
    before = states(paths.values())
    seen = {name: before[path] for name, path in paths.items()}
    if kept := _kept(root / kept_in, seen):
        return kept
    computed = f"sha256:{digest_of_files(paths)}"
    after = states(paths.values())
    if changed := [path for path, state in after.items() if before[path] != state]:
        raise Conflict(f"{changed[0]} was changed while it was read: try again", param="model")
    youngest = max((max(modified, changed) for *_, modified, changed in seen.values()), default=0)
    if youngest < time.time_ns() - SETTLED:
        note = {"format": FORMAT, "fingerprint": computed, "files": seen}
        with suppress(OSError):  # a folder that cannot be written to, or a full disk
            replace_file(root / kept_in, json.dumps(note).encode())
    return computed


def digest_of_files(files: Mapping[str, Path]) -> str:
    """SHA-256 (64 hex digits) over the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for name, path in files.items():
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def states(files: Iterable[Path]) -> dict[Path, list[int]]:
    """[device, inode, size, time of modification, time of change (ns)] of each file, at the end of links.

    Nobody can set the last one: other bytes have another state, even those of a tool that restores sizes and times (cp -p,
    rsync -t, tar), and so has a copy of the file.
    """
    stats = {file: file.stat() for file in files}
    return {file: [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in stats.items()}


def _kept(file: Path, seen: dict[str, list[int]]) -> str | None:
    """The fingerprint kept in this file, if it was computed of the files as they are: `seen` are their states."""
    with suppress(OSError, ValueError, RecursionError):  # missing or damaged: it is computed again
        kept = json.loads(file.read_bytes())
        if isinstance(kept, dict) and (kept.get("format"), kept.get("files")) == (FORMAT, seen):
            computed = kept.get("fingerprint")
            return computed if isinstance(computed, str) and _FINGERPRINT.fullmatch(computed) else None
    return None
