"""The folder of a batch: its images, what became of each line, and enough to go on after a kill."""

from __future__ import annotations

import json
import os
import threading
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from registry.errors import Conflict, InvalidInput, Tampered
from registry.files import replace_file, try_lock

PROGRESS, RESULTS = "progress.jsonl", "results.jsonl"

Outcome = dict[str, Any]
"""What became of a line: `files` and `answer`, or `error`."""


class OutputFolder:
    """One batch at a time has it. A line is done when `progress.jsonl` says so, which it does when its images are in files.

    Several threads may say what became of lines.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Raises `Conflict` where another process is at it, `InvalidInput` where it holds the images of other prompts."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        progress = try_lock(folder / PROGRESS)
        if progress is None:
            raise Conflict("another batch is writing there", param=str(folder))
        self._progress: BinaryIO = progress
        self._lock = threading.Lock()
        self.outcomes = self._read(digest)

    def done(self, line: int, answer: dict[str, Any], width: int) -> None:
        """The images of a line are there. answer: what `/generate` answered."""
        images = answer.pop("images")
        names = [f"{line:0{width}}{f'-{i}' if i > 1 else ''}.{answer['output_format']}" for i in range(1, len(images) + 1)]
        for name, image in zip(names, images, strict=True):
            replace_file(self._folder / name, b64decode(image))
        self._append(line, {"files": names, "answer": answer})

    def failed(self, line: int, error: Mapping[str, Any]) -> None:
        """A line cannot be done. error: as the server says it."""
        self._append(line, {"error": dict(error)})

    def forget_errors(self) -> None:
        """Lines that failed are to be tried again."""
        self.outcomes = {line: outcome for line, outcome in self.outcomes.items() if "error" not in outcome}

    def close(self) -> None:
        """Write `results.jsonl`, in the order of the lines, and let others have the folder."""
        lines = (json.dumps({"line": line} | self.outcomes[line], ensure_ascii=False) for line in sorted(self.outcomes))
        replace_file(self._folder / RESULTS, "".join(f"{line}\n" for line in lines).encode())
        self._progress.close()

    def _append(self, line: int, outcome: Outcome) -> None:
        with self._lock:
            self._write({"line": line} | outcome)
            self.outcomes[line] = outcome

    def _write(self, record: dict[str, Any]) -> None:
        self._progress.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._progress.flush()
        os.fsync(self._progress.fileno())

    def _read(self, digest: str) -> dict[int, Outcome]:
        """What earlier runs have done. What a power cut left of a last line is cut off: that line is not done."""
        self._progress.seek(0)
        data = self._progress.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._progress.truncate(len(whole))
        if not whole:
            self._write({"prompts": digest})
            return {}
        try:
            first, *records = [json.loads(line) for line in whole.splitlines()]
            of_these = first["prompts"] == digest
            outcomes = {record.pop("line"): record for record in records}
        except (ValueError, KeyError, TypeError) as error:
            raise Tampered("is no record of a batch: take another folder", param=str(self._folder / PROGRESS)) from error
        if not of_these:
            raise InvalidInput("it holds a batch of other prompts, or of a file that has changed", param=str(self._folder))
        return outcomes
