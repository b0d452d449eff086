"""python -m benchmarks.engine: who is how fast, measured side by side: our steps and images, diffusers', DeepCache's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.commands.command_line import OneLineErrorsCommand, command_line
from registry.errors import InvalidInput
from registry.foreign_errors import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.engine.competitors import Field
    from benchmarks.engine.report import BenchmarkReport

RANDOM = Path(".flexi/random")  # folders with random weights, made once
SMALL_LATENT = 8  # of real sizes on a CPU

app = command_line(help="Who is how fast, measured side by side.")


@app.command(cls=OneLineErrorsCommand)
def bench(
    section: Annotated[
        list[str] | None, typer.Argument(help="compile, steps, generations, host, images, equality [default: all].")
    ] = None,
    model: Annotated[str, typer.Option(help="A diffusers pipeline folder; or sd15, sdxl: random weights of those sizes.")] = (
        "models/emoji64"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    latent: Annotated[
        int | None, typer.Option(help="Height and width of latents [default: the model's, 8 of sd15 and sdxl on a CPU].")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Of everything in turns; fewer where one takes seconds.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads that torch computes with on a CPU.")] = 1,
    limit: Annotated[float, typer.Option(help="Seconds that a section may take; what it has by then counts.")] = 600.0,
    out: Annotated[
        Path | None, typer.Option(help="A file that always holds all results so far, as --json prints them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """Measure our steps, images and waves side by side with diffusers' and DeepCache's (minutes).

    Without the section compile nobody is compiled. A section that fails or takes too long keeps what it has, and the next one
    begins.
    """
    import torch

    from benchmarks.engine.competitors import Field
    from benchmarks.engine.report import BenchmarkReport
    from benchmarks.engine.sections import SECTIONS
    from benchmarks.engine.workload import Source
    from engine import random_model

    unknown = set(section or ()) - set(SECTIONS)
    if unknown:
        raise InvalidInput(f"there is no {min(unknown)}; there are {', '.join(SECTIONS)}", param="section")
    if min(repeats, threads, limit) < 1 or (latent is not None and latent < 1):
        raise InvalidInput("repeats, threads, limit and latent must be at least 1", param="repeats")
    torch.set_num_threads(threads)
    folder = Path(model)
    if model in random_model.SIZES:
        folder = RANDOM / f"{model}-{dtype}"
        latent = SMALL_LATENT if latent is None and device == "cpu" and not model.startswith("tiny") else latent
        if not (folder / "model_index.json").is_file():
            _say(f"making {folder}")
            random_model.write(model, folder, dtype)
    chosen = [name for name in SECTIONS if name in (section or SECTIONS)]
    source = Source(folder, device, dtype, latent)
    workload = source.workload()
    about = _about(model, workload.model.latent_shape, device, dtype, threads, repeats)
    report = BenchmarkReport(about, workload.model.device.type, out)
    field = Field(source, workload, "compile" in chosen)
    for name in chosen:
        _measure(name, field, report, repeats, limit)
    if as_json:
        print(json.dumps(report.document()))
    else:
        report.print()
    return int(any(end["fault"] for end in report.sections.values()))


def _measure(name: str, field: Field, report: BenchmarkReport, repeats: int, limit: float) -> None:
    """One section, within its limits."""
    import torch

    from benchmarks.engine.sections import SECTIONS
    from benchmarks.engine.timing import TimeUp, limited

    _say(f"measuring: {name}")
    start, fault = time.monotonic(), ""
    try:
        with limited(limit), torch.inference_mode():
            for result in SECTIONS[name](field, repeats):
                report.add(result)
    except TimeUp:
        fault = f"its {limit:g} s were over"
    except Exception as error:
        fault = f"failed: {one_line(error)}"
    report.end(name, time.monotonic() - start, fault)


def _about(model: str, latent: tuple[int, int, int], device: str, dtype: str, threads: int, repeats: int) -> Mapping[str, Any]:
    from importlib.metadata import version

    import torch

    from benchmarks.engine import deepcache

    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "model": model,
        "latent": "×".join(map(str, latent)),
        "device": device,
        **({"card": card, "cuda": torch.version.cuda} if card else {"threads": threads}),
        "dtype": dtype,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "deepcache": deepcache.installed() or "not installed",
        "repeats": repeats,
    }


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, style="dim")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.engine")
