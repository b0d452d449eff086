"""python -m server.access: make, list and revoke API keys."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from registry.commands.command_line import command_line
from registry.document import first_fault
from registry.errors import Conflict, InvalidInput, NotFound
from server.access.key_file import KeyEntry, Role, changing, read, sha256

app = command_line(
    help="Make, list and revoke API keys. A running server takes a change over within two seconds.",
)

File = Annotated[Path, typer.Option("--file", envvar="FLEXI_API_KEYS", help="The file of the keys; `new` makes it.")]
Holder = Annotated[str, typer.Argument(help="Who holds the key. It stands in logs, the key never does.")]
Macs = Annotated[int | None, typer.Option("--macs-per-minute", help="UNet MACs in a minute; without it, no limit.")]
Seconds = Annotated[
    float | None, typer.Option("--queue-seconds", help="Predicted seconds of its queued work; without it, the server's limit.")
]
AsRole = Annotated[
    Role | None, typer.Option("--role", help="operator: may also move tiers and end experiments, in the console at /console.")
]
Note = Annotated[str, typer.Option("--note", "-m", help="What it is for.")]


@app.command()
def new(
    name: Holder, file: File, macs_per_minute: Macs = None, queue_seconds: Seconds = None, role: AsRole = None, note: Note = ""
) -> None:
    """Make a key and print it. It is shown this once: the file keeps only its SHA-256."""
    token = f"flexi-{secrets.token_urlsafe(32)}"  # 256 bits; the beginning lets scanners find keys where none should be
    limits = {"macs_per_minute": macs_per_minute, "queue_seconds": queue_seconds}
    try:
        entry = KeyEntry.model_validate({"name": name, "sha256": sha256(token), "role": role, "note": note, **limits})
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(fault.text, param=fault.param) from None
    with changing(file) as entries:
        if name in [other.name for other in entries]:
            raise Conflict(f"{name} has a key already: revoke it first, or choose another name", param="name")
        entries.append(entry)
    typer.echo(token)


@app.command("list")
def list_(file: File) -> None:
    """Who has a key, and what they may use."""
    for entry in read(file).keys:
        limits = f"macs_per_minute={entry.macs_per_minute or '-'} queue_seconds={entry.queue_seconds or '-'}"
        limits += f" role={entry.role}" if entry.role else ""
        typer.echo(f"{entry.name}  {limits}  {entry.note}".rstrip())


@app.command()
def revoke(name: Holder, file: File) -> None:
    """Revoke a key: from then on nobody gets in with it."""
    with changing(file) as entries:
        left = [entry for entry in entries if entry.name != name]
        if left == entries:
            raise NotFound(f"there is no key {name!r} in {file}", param="name")
        entries[:] = left


if __name__ == "__main__":
    app(prog_name="python -m server.access")
