"""python -m benchmarks.start: how long a server takes until it is ready, by part, from a cold disk cache and a warm one.

FLEXI_* variables hold as for any server. The figures are of whatever else the machine does meanwhile, too.
"""

from __future__ import annotations

import os
import re
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from engine.fingerprint import KEPT
from examples.launch import started
from registry.commands.command_line import run_command

PATIENCE = 1800.0  # seconds; a first start that compiles takes minutes
SUPERVISOR = "supervisor"  # all that is not the worker's: until it begins, and until somebody hears that it is ready


def main(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    starts: Annotated[int, typer.Option(min=1, help="From a warm cache; their median is printed.")] = 3,
    cold: Annotated[
        bool,
        typer.Option(help="First one from a cold cache, without the kept fingerprint. What runs keeps its own files warm."),
    ] = True,
) -> None:
    """Start the service several times and print the seconds of each part."""
    first = None
    if cold:
        (model / KEPT).unlink(missing_ok=True)
        evict(file for root in (sysconfig.get_path("purelib"), model) for file in Path(root).rglob("*") if file.is_file())
        first = start(model)
    warm = sorted((start(model) for _ in range(starts)), key=lambda parts: parts["ready"])[(starts - 1) // 2]
    table = Table("part", *["cold"] * cold, "warm", title=f"Seconds until {model} is served")
    for part, seconds in warm.items():
        table.add_row(part, *([f"{first.get(part, 0.0):.1f}"] if first else []), f"{seconds:.1f}")
    Console().print(table)


def start(model: Path) -> dict[str, float]:
    """The seconds of one start by part; `ready` is the whole, from the command to the answer of /readyz."""
    with TemporaryDirectory() as folder:
        own = {"FLEXI_MODEL": str(model.resolve()), "FLEXI_REGISTRY": f"{folder}/registry", "FLEXI_STATE": f"{folder}/state"}
        began = time.monotonic()
        with started(own, Path(folder) / "server.log", patience=PATIENCE) as service:
            whole = time.monotonic() - began
            page = httpx.get(f"{service.address}/metrics").text
    found = re.findall(r'^flexi_start_seconds{part="(\w+)"} (.+)$', page, re.MULTILINE)
    parts = {part: float(seconds) for part, seconds in found}
    worker = parts.pop("ready")
    return {SUPERVISOR: whole - worker, **dict(sorted(parts.items())), "ready": whole}


def evict(files: Iterable[Path]) -> None:
    """Ask the kernel to forget what it holds of these files; needs no rights, and does nothing to what is mapped."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    run_command(main)
