"""The way out where no worker can succeed: one notes why, and `bentoml serve` ends with that as its last line.

BentoML's supervisor (circus) replaces a worker that ended, whatever its exit code, for as long as it lives; at SIGTERM it ends
its workers and then itself, with exit code 0. It has imported the service too, in a command of click. So it leaves to its
workers its process id and the name of a folder: one that cannot start, or lost its engine when no successor would do better,
writes the reason there and sends it SIGTERM, and when the command is over its context ends the process with the reason and exit
code 1.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click

_SUPERVISOR = "FLEXIFFUSION_SUPERVISOR"  # process id and folder; no setting of a user
_DEATHS = 3  # workers that died while they were starting, since one was open: no chance any more
REFUSED_SECONDS = 60.0  # between two tries of a worker that cannot start, where others serve
_LOSSES, _LOSS_SECONDS = 3, 600.0  # engines lost of each worker within so many seconds: successors find the device gone too
_IN_CONTAINERS = ("BENTOML_CONTAINERIZED", "BENTOCLOUD_DEPLOYMENT_URL")  # where BentoML starts no successors


def supervise() -> bool:
    """In BentoML's supervisor, which imports the service in its command `serve`: True. Does nothing in any other process."""
    context = click.get_current_context(silent=True)
    if context is None or "host" not in context.params:
        return False
    folder = Path(tempfile.mkdtemp(prefix="flexiffusion-"))
    os.environ[_SUPERVISOR] = f"{os.getpid()}:{folder}"
    context.call_on_close(lambda: _end(folder))
    return True


def starting() -> None:
    """A worker begins to start. Raises `SystemExit` when several before it died of that without a word, and none is open."""
    if folder := shared_folder():
        if (deaths := len(_dead(folder))) >= _DEATHS and not others_open():
            raise refused(f"{deaths} workers in a row were killed while they started; for memory, if dmesg says so")
        (folder / f"starting-{os.getpid()}").touch()


def started(workers: int) -> None:
    """This worker, one of so many, is open: whoever died before it is no reason to give up any more."""
    if folder := shared_folder():
        for file in (*_dead(folder), folder / f"starting-{os.getpid()}"):
            file.unlink(missing_ok=True)
        (folder / f"open-{os.getpid()}").touch()
        if len(_open(folder)) >= workers:
            (folder / "complete").touch()


def others_open() -> bool:
    """Whether another worker of the server takes requests."""
    folder = shared_folder()
    return bool(folder and _open(folder) - {os.getpid()})


def others_go_on() -> bool:
    """Whether they do without this one, which cannot start: where all were open once it is no fault of the installation."""
    folder = shared_folder()
    return bool(folder and (folder / "complete").exists() and others_open())


def given_up() -> None:
    """This worker could not start, and the others go on: it is none of those that died without a word."""
    if folder := shared_folder():
        (folder / f"starting-{os.getpid()}").unlink(missing_ok=True)


def lost(reason: str, workers: int) -> bool:
    """This worker, one of so many that were open, has lost its engine. Says whether the whole server is to `end` with it.

    It is where nobody would take the worker's place, or its successors have lost theirs too; the reason is the last line then.
    """
    if folder := shared_folder():
        (folder / f"lost-{os.getpid()}").touch()
        (folder / f"open-{os.getpid()}").unlink(missing_ok=True)
        recent = [file for file in folder.glob("lost-*") if time.time() - file.stat().st_mtime < _LOSS_SECONDS]
        if len(recent) < _LOSSES * workers and not any(name in os.environ for name in _IN_CONTAINERS):
            return False
    note(reason)
    return True


def note(reason: str) -> None:
    """Why the server cannot start, or go on: its last line, if no other worker was faster."""
    if folder := shared_folder():
        with suppress(FileExistsError), (folder / "reason").open("x") as file:
            file.write(reason)
    else:
        sys.stderr.write(f"error: {reason}\n")


def end() -> None:
    """End the server, whose supervisor will find the note; without a supervisor of ours, this process."""
    if shared_folder():
        os.kill(os.getppid(), signal.SIGTERM)
    else:
        os._exit(1)


def refused(reason: str) -> SystemExit:
    """To raise where the service is imported, in the supervisor, in a worker or anywhere else: ends the server too."""
    if others_go_on():
        sys.stderr.write(f"error: a worker cannot start, and the others go on: {reason}\n")
        given_up()
        time.sleep(REFUSED_SECONDS)  # until a successor is worth a try
        return SystemExit(1)
    if shared_folder():
        note(reason)
        end()
        return SystemExit(1)
    return SystemExit(f"error: {reason}")


def shared_folder() -> Path | None:
    """The folder of this worker's supervisor, which all its workers know; None in any other process."""
    pid, _, folder = os.environ.get(_SUPERVISOR, "").partition(":")
    return Path(folder) if pid == str(os.getppid()) else None


def own_folder() -> Path | None:
    """In the supervisor, the folder that its workers will find."""
    pid, _, folder = os.environ.get(_SUPERVISOR, "").partition(":")
    return Path(folder) if pid == str(os.getpid()) else None


def _dead(folder: Path) -> list[Path]:
    """What workers left that are gone, and were never open."""
    return [file for file in folder.glob("starting-*") if not _lives(_pid(file))]


def _open(folder: Path) -> set[int]:
    """Process ids of the workers that take requests."""
    return {pid for pid in map(_pid, folder.glob("open-*")) if _lives(pid)}


def _pid(file: Path) -> int:
    return int(file.name.rpartition("-")[2])


def _lives(pid: int) -> bool:
    return Path("/proc", str(pid)).exists()


def _end(folder: Path) -> None:
    reason = folder / "reason"
    text = reason.read_text() if reason.exists() else ""
    shutil.rmtree(folder, ignore_errors=True)
    if text:
        raise SystemExit(f"error: {text}")
