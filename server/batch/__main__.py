"""python -m server.batch prompts.jsonl --out FOLDER: a file of requests, as background work of a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from registry.commands.command_line import run_command
from server.batch.batch import Batch
from server.batch.output_folder import OutputFolder
from server.batch.prompts_file import PromptsFile
from server.batch.throttle import Throttle

Prompts = Annotated[Path, typer.Argument(help="A body of /generate, or a prompt in quotes, on each line.", exists=True)]
Out = Annotated[Path, typer.Option("--out", help="Folder for the images and results.jsonl; a second run goes on with it.")]
Url = Annotated[str, typer.Option("--url", help="Of the server.")]
Key = Annotated[str, typer.Option("--key", envvar="FLEXIFFUSION_API_KEY", help="API key; better in the environment.")]
Together = Annotated[int, typer.Option("--together", min=1, max=256, help="Requests at a time at most.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try lines again that ended with an error.")]


def main(
    prompts: Prompts,
    out: Out,
    url: Url = "http://127.0.0.1:3000",
    key: Key = "",
    together: Together = 16,
    retry: Retry = False,
) -> int:
    """Have a file of requests made as background work of a running server: its clients are not disturbed.

    Run it again after a kill or Ctrl-C: what is done stays. Exit code 1 if any line ended with an error.
    """
    file = PromptsFile.read(prompts)
    folder = OutputFolder(out, file.digest)
    if retry:
        folder.forget_errors()
    console = Console(stderr=True)
    columns = (
        TextColumn("lines"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("lines", total=len(file.bodies), completed=len(folder.outcomes))
            asyncio.run(_run(file, folder, url, key, together, lambda: bar.advance(task)))
    finally:
        folder.close()
    errors = sum("error" in outcome for outcome in folder.outcomes.values())
    typer.echo(f"{len(folder.outcomes)} lines, {errors} with an error: {out / 'results.jsonl'}")
    return 1 if errors else 0


async def _run(
    file: PromptsFile, folder: OutputFolder, url: str, key: str, together: int, advanced: Callable[[], None]
) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=together)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits) as client:
        await Batch(client, folder, Throttle(together), advanced).run(file.bodies)


if __name__ == "__main__":
    run_command(main)
