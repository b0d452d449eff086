"""python -m benchmarks.threads: how long a step takes on a CPU, by its threads and by what idle threads do.

OpenMP's threads wait for one another in every layer. Those that spin are there at once and take the core from
others; those that sleep (OMP_WAIT_POLICY=passive) have to be woken, which on a virtual machine may take longer than a small
layer. Run it where the model is to run, before setting FLEXI_THREADS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from registry.commands.command_line import run_command

SPINNING, SLEEPING = "spin", "sleep"
WARM = 3  # calls that do not count


def main(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    images: Annotated[list[int] | None, typer.Option(min=1, help="Images of a call; repeat [default: 1, 8 and 32].")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Threads of a call; repeat [default: 1 and as many as there are cores].")
    ] = None,
    busy: Annotated[int, typer.Option(min=0, help="Other processes that take a core each meanwhile.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of calls, for each cell; their median is printed.")] = 2.0,
    cell: Annotated[bool, typer.Option("--cell", hidden=True)] = False,
) -> None:
    """Print the milliseconds of an image's step for each number of threads, with threads that spin and that sleep."""
    counts = images or [1, 8, 32]
    if cell:
        print(json.dumps([step(model, count, seconds) for count in counts]))
        return
    title = f"Milliseconds of an image's step, {model}, {os.cpu_count()} cores, {busy} of them busy with something else"
    table = Table("threads", "that wait", *(f"{count} at once" for count in counts), title=title)
    with occupied(busy):
        for number in threads or sorted({1, os.cpu_count() or 1}):
            for waiting in (SPINNING, SLEEPING) if number > 1 else ("",):
                table.add_row(str(number), waiting, *(f"{ms:.1f}" for ms in measured(model, counts, number, waiting, seconds)))
    Console().print(table)


def measured(model: Path, images: list[int], threads: int, waiting: str, seconds: float) -> list[float]:
    """The milliseconds by number of images, in a process of its own: OpenMP reads its environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_NUM_THREADS": str(threads)} | ({"OMP_WAIT_POLICY": "passive"} if waiting == SLEEPING else {})
    wanted = [word for count in images for word in ("--images", str(count))]
    command = [sys.executable, "-m", "benchmarks.threads", "--cell", "--model", str(model), "--seconds", str(seconds), *wanted]
    answer: list[float] = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return answer


def step(folder: Path, images: int, seconds: float) -> float:
    """The milliseconds of one image's full step where so many are one call, guidance included."""
    import torch

    from engine.condition import Condition
    from engine.loading import load, usual

    model, guidance = load(folder), usual(folder).guidance
    condition = model.encode([next(iter(model.prompts.classes), "")], guidance).expand(images)
    rows = images * model.rows(guidance)
    if rows > images:
        condition = Condition.cat([model.negative([""]).expand(images), condition])
    sample, timesteps = torch.randn(rows, *model.latent_shape_at(None)), torch.full((rows,), 500)
    taken: list[float] = []
    with torch.inference_mode():
        until = time.perf_counter() + seconds
        while len(taken) < 2 * WARM or time.perf_counter() < until:
            began = time.perf_counter()
            model.network.full(sample, timesteps, condition)
            taken.append(1000 * (time.perf_counter() - began) / images)
    return median(taken[WARM:])


@contextmanager
def occupied(count: int) -> Iterator[None]:
    """So many processes compute in vain."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    run_command(main)
