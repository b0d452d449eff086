"""API keys in force. `python -m server.keys` makes, lists and revokes them."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from pydantic import ValidationError

from registry.cli import command_line
from registry.errors import Conflict, InvalidInput, NotFound
from server import metrics
from server.key_file import EVERYBODY, KeyEntry, changing, first_fault, read, sha256

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # at least, between two looks at the file


@dataclass(frozen=True)
class Key:
    """Whom a request comes from and what they may use: MACs in a minute, predicted seconds of their queued work.

    None is no limit. The secret is not in it, so it may be logged.
    """

    name: str
    macs_per_minute: int | None
    queue_seconds: float | None


ANONYMOUS = Key(EVERYBODY, None, None)  # who everybody is where the server has no keys


class Keys:
    """Follows the file. A broken or vanished one changes nothing; it is logged and counted.

    The file is small and local: reading it keeps the event loop for about a millisecond.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        """Raises `InvalidInput` when there is no good file to begin with."""
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._entries = read(path).keys

    def find(self, token: str) -> Key | None:
        """Whose key this is. All entries are compared, in constant time: how long it takes says nothing about them."""
        self._look()
        digest, found = sha256(token), None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = Key(entry.name, entry.macs_per_minute, entry.queue_seconds)
        return found

    def _look(self) -> None:
        now = self._clock()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked, stamp = now, _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # of a broken file too: it is told once, and read again when it changes
        try:
            self._entries = read(self._path).keys
        except InvalidInput as error:
            metrics.api_keys_errors_total.inc()
            log.error("the API keys stay as they were: %s", error.message)
        else:
            log.info("API keys read", extra={"fields": {"keys": [entry.name for entry in self._entries]}})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs once the file was written or replaced; None when it cannot be found."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


app = command_line(
    help="Make, list and revoke API keys. A running server takes a change over within two seconds.",
    epilog="Exit codes: 0 done; 1 not possible, one line on stderr says why; 2 wrong usage.",
)

File = Annotated[Path, typer.Option("--file", envvar="FLEXI_API_KEYS", help="The file of the keys; `new` makes it.")]
Holder = Annotated[str, typer.Argument(help="Who holds the key. It stands in logs, the key never does.")]
Macs = Annotated[int | None, typer.Option("--macs-per-minute", help="UNet MACs in a minute; without it, no limit.")]
Seconds = Annotated[float | None, typer.Option("--queue-seconds", help="Predicted seconds of its queued work; the same.")]
Note = Annotated[str, typer.Option("--note", "-m", help="What it is for.")]


@app.command()
def new(name: Holder, file: File, macs_per_minute: Macs = None, queue_seconds: Seconds = None, note: Note = "") -> None:
    """Make a key and print it. It is shown this once: the file keeps only its SHA-256."""
    token = f"flexi-{secrets.token_urlsafe(32)}"  # 256 bits; the beginning lets scanners find keys where none should be
    limits = {"macs_per_minute": macs_per_minute, "queue_seconds": queue_seconds}
    try:
        entry = KeyEntry.model_validate({"name": name, "sha256": sha256(token), "note": note, **limits})
    except ValidationError as error:
        raise InvalidInput(first_fault(error)) from None
    with changing(file) as entries:
        if name in [other.name for other in entries]:
            raise Conflict(f"{name} has a key: revoke it first, or choose another name", param="name")
        entries.append(entry)
    typer.echo(token)


@app.command("list")
def list_(file: File) -> None:
    """Who has a key, and what they may use."""
    for entry in read(file).keys:
        limits = f"macs_per_minute={entry.macs_per_minute or '-'} queue_seconds={entry.queue_seconds or '-'}"
        typer.echo(f"{entry.name}  {limits}  {entry.note}".rstrip())


@app.command()
def revoke(name: Holder, file: File) -> None:
    """Take a key back."""
    with changing(file) as entries:
        left = [entry for entry in entries if entry.name != name]
        if left == entries:
            raise NotFound(f"there is no key {name!r} in {file}", param="name")
        entries[:] = left


if __name__ == "__main__":
    app()
