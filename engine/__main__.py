"""python -m engine: run one schedule by hand, import a checkpoint, compile a model beforehand, count what a UNet costs.

Torch is imported only when needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import inf, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.buckets import MAX_ROWS
from engine.guidance import OFF, covers, default_scale, meant, validated_scales
from engine.image_size import ImageSize, covers_size, sizes_in
from engine.importing.command import import_checkpoint
from engine.named_unet import named_unet
from registry.commands.command_line import command_line
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.schedule import Schedule, SolverName, teacher

if TYPE_CHECKING:
    from torch import Tensor

    from engine.macs import StepMacs
    from engine.model import Model

GUIDANCE = 7.5  # as diffusers' pipelines for Stable Diffusion have it

app = command_line(
    help="Run one schedule by hand, import a checkpoint, compile a model beforehand, and count what a UNet costs.",
)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Option(help="What to draw: a text or a class; not for unconditional models.")] = None,
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    name: Annotated[str | None, typer.Option(help="What schedules call the model [default: the folder's name].")] = None,
    negative: Annotated[str, typer.Option(help="What to stay away from; needs guidance above 1.")] = "",
    schedule: Annotated[str, typer.Option(help="A schedule document, or teacher for every step full.")] = "teacher",
    solver: Annotated[
        SolverName | None, typer.Option(help="Teacher only [default: dpmsolver++, or a distilled model's own].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Teacher only [default: 50, or a distilled model's own].")] = None,
    seed: Annotated[int, typer.Option(help="Of the first image; the next ones count up.")] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 1 or less is off [default: where the schedule was validated, 7.5, or 1]."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels [default: the model's own].")] = None,
    num_images: Annotated[int, typer.Option(help="How many images to make.")] = 1,
    lora: Annotated[list[str] | None, typer.Option(help="FILE or FILE:SCALE, added to the model; repeat for several.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile UNet and decoder; the first image takes minutes unless `warm` was run.")
    ] = False,
    out: Annotated[Path, typer.Option(help="PNG file; several get -1, -2, … before the suffix.")] = Path("out.png"),
) -> None:
    """Generate images by one schedule, and print what they cost."""
    if num_images < 1:
        raise InvalidInput(f"must be at least 1, got {num_images}", param="num_images")
    if guidance is not None and not 0 <= guidance < inf:  # which nan is not either
        raise InvalidInput(f"must be a finite number of at least 0, got {guidance}", param="guidance")
    if negative and guidance is not None and guidance <= OFF:
        raise InvalidInput(f"needs guidance above 1, got guidance {guidance}", param="negative")
    if out.suffix.lower() != ".png":
        raise InvalidInput(f"must be a .png file, got {out}", param="out")
    if not out.parent.is_dir():
        raise NotFound(f"there is no folder {out.parent}", param="out")
    for file in _names(out, num_images):
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder", param="out")
    asked_size = ImageSize.parse(size) if size is not None else None
    if schedule != "teacher" and (solver is not None or steps is not None):
        raise InvalidInput("--solver and --steps are for teacher; a document brings its own", param="schedule")

    if lora and compiled:
        raise InvalidInput("a model with LoRAs added runs as it is; import them, or leave --compile out", param="lora")

    from engine import loading, sampler
    from engine.adapters import adapted, read_loras
    from engine.fresh_noise import stacked
    from engine.images import finite
    from engine.importing.lora import parse_lora
    from engine.prompts import NoPrompts

    added = read_loras(model, [parse_lora(text) for text in lora]) if lora else []  # before the weights, which take longer
    loaded = adapted(loading.load(model, device, dtype, name, compiled=compiled), added)
    shown_size = asked_size or loaded.image_size
    other_size = loaded.other_size(shown_size)
    if schedule == "teacher":
        own = loaded.teacher_solver if loaded.few_steps else "dpmsolver++"
        document = _teacher(loaded, solver or own, (loaded.few_steps or 50) if steps is None else steps)
    else:
        document = _read_schedule(Path(schedule))
    program, all_full = loaded.compile(document), loaded.compile(teacher(loaded.ref, document.solver))
    validated = validated_scales(document)
    usual = GUIDANCE if loaded.prompts.guides and not loaded.few_steps else loaded.usual_guidance
    own_scale = default_scale(document, usual)
    scale = meant(guidance) if guidance is not None else usual if own_scale is None else own_scale
    rows = loaded.rows(scale)
    if negative and rows == 1:
        why = "needs guidance above 1: this model is not guided unless --guidance says so"
        if loaded.embeds_guidance:
            why = "has no effect: this model takes the guidance scale as an input, and guides away from nothing"
        raise InvalidInput(why, param="negative")
    if prompt is None and not isinstance(loaded.prompts, NoPrompts):
        raise InvalidInput("say what this model should draw", param="prompt")
    for notice in loaded.notices:
        print(notice.message, file=sys.stderr)
    for one in added:
        changed = ", ".join(f"{count} layers of {component}" for component, count in one.layers().items())
        print(f"lora: {one.file.path.name} × {one.scale:g} changes {changed}", file=sys.stderr)
        for note in one.notes:
            print(f"lora: {note}", file=sys.stderr)
    if added and schedule != "teacher":
        print("lora: the schedule was searched without it, and is not measured on it", file=sys.stderr)
    for option, text in (("prompt", prompt or ""), ("negative", negative)):
        if cut := loaded.prompts.cut(text):
            print(f"{option}: the model reads {loaded.prompts.tokens} tokens and ignored the end: {cut}", file=sys.stderr)
    if validated and not covers(document, scale):
        print(f"guidance: the schedule was validated at {', '.join(map('{:g}'.format, validated))}", file=sys.stderr)
    if not covers_size(document, shown_size, loaded.image_size):
        print(f"size: the schedule was not measured at {shown_size}", file=sys.stderr)
    seeds = range(seed, seed + num_images)
    condition = loaded.encode([prompt or ""] * num_images, scale, other_size)
    unconditional = loaded.negative([negative] * num_images, other_size) if rows == 2 else None
    fresh = stacked([loaded.noises(number, other_size) for number in seeds])
    latents = sampler.generate(loaded.network, program, fresh(0), condition, unconditional, scale, fresh)
    images = loaded.decode(latents)

    counts, of = document.counts(), f"of the teacher's {document.solver.teacher_steps}"
    print(f"schedule   {document.digest[:12]}, {document.solver.name}")
    print(f"steps      {document.computed} computed {of}: {counts['full']} full, {counts['partial']} partial")
    macs = loaded.macs_at(other_size)
    print(f"size       {shown_size}")
    print(f"MACs       {macs.of_program(program, rows) / 1e9:.4f} G per image")
    print(f"relative   {macs.relative(program, all_full):.4f} of the teacher's MACs")
    failed = []
    for number, good, image, file in zip(seeds, finite(images).tolist(), images, _names(out, num_images), strict=True):
        if good:
            _save(image, file)
            print(f"image      {file}, seed {number}")
        else:
            failed.append(number)
    if loaded.decoder.overflowed:
        print(f"decoder    in a wider type, because it overflowed in {dtype}")
    if failed:
        reason = _fault(latents[failed[0] - seed], dtype)
        raise FlexiError(f"no image of seed {', '.join(map(str, failed))}: {reason}")


@app.command()
def warm(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    max_wave_rows: Annotated[int, typer.Option(help="As the server's FLEXI_MAX_WAVE_ROWS.")] = 16,
    sizes: Annotated[str, typer.Option(help="As the server's FLEXI_SIZES.")] = "",
    cache: Annotated[Path, typer.Option(help="As the server's FLEXI_COMPILE_CACHE.")] = Path(".flexi/compile"),
) -> None:
    """Compile all that a server with these settings compiles, and keep it in a folder, so that servers start quickly."""
    if not 2 <= max_wave_rows <= MAX_ROWS:
        raise InvalidInput(f"must be between 2 and {MAX_ROWS}, got {max_wave_rows}", param="max_wave_rows")

    from engine import compiling, loading

    compiling.cache_in(cache)
    print(f"compiling {model} for {device}: minutes, if {cache} does not have it yet", file=sys.stderr)
    loaded = loading.load(model, device, dtype, compiled=True)
    compiled = compiling.warm(loaded, max_wave_rows, others=loaded.other_sizes(sizes_in(sizes)))
    print(f"graphs     {compiled.graphs}, {compiled.cached} of them from the cache")
    print(f"seconds    {compiled.seconds:.1f}")
    print(f"cache      {compiling.cache_bytes(cache) / 2**20:.1f} MiB in {cache}")


@app.command()
def macs(
    path: Annotated[Path, typer.Argument(help="A diffusers model folder, or a UNet's config.json.")],
    size: Annotated[tuple[int, int] | None, typer.Option(help="Latent height and width [default: sample_size].")] = None,
    branch: Annotated[int | None, typer.Option(help="Only this branch of the partial steps.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Length of the context [default: the text encoder's, else 77].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """MACs of one UNet row (batch 1, no guidance) of a full step and of each partial step. Needs no weights.

    macs counts the products of attention too, which torch's FlopCounterMode misses where a CPU runs flash attention.
    """
    config, shape, length = named_unet(path, size, tokens)

    from engine.macs import count_steps

    counted = count_steps(config, shape, length)
    if branch is not None and branch not in counted.partial:
        last = max(counted.partial)
        raise InvalidInput(f"must be between 1 and {last} for this UNet, got {branch}", param="branch")
    chosen = {number: value for number, value in counted.partial.items() if branch in (None, number)}
    if as_json:
        features = {number: counted.features[number] for number in chosen}  # (c, h, w) of what a row caches
        full, *partial = ({"macs": one.macs, "paper_macs": one.paper_macs} for one in (counted.full, *chosen.values()))
        by_branch = dict(zip(chosen, partial, strict=True))
        print(json.dumps({"parameters": counted.parameters, "full": full, "partial": by_branch, "features": features}))
    else:
        _print_table(counted, list(chosen), shape, length)


@app.command()
def supported() -> None:
    """Print what loads, what is imported and what is refused: docs/supported.md."""
    from engine.supported import page

    print(page(), end="")


@app.command()
def random(
    size: Annotated[str, typer.Argument(help="sd15, sdxl, tiny or tiny-sdxl.")],
    out: Annotated[Path, typer.Argument(help="The folder to make: 2.1 GB of sd15 in float16, 6.9 GB of sdxl.")],
    dtype: Annotated[str, typer.Option(help="What the weights are kept in; they load in any.")] = "float16",
) -> None:
    """Make a pipeline folder with random weights of a real model's sizes, to measure with where none can be downloaded."""
    from engine import random_model

    random_model.write(size, out, dtype)
    print(out)


app.command("import")(import_checkpoint)


def _teacher(model: Model, solver: SolverName, steps: int) -> Schedule:
    limit = len(model.levels.alphas_cumprod)
    if not 1 <= steps <= limit:
        raise InvalidInput(f"must be between 1 and {limit}, got {steps}", param="steps")
    return teacher(model.ref, model.solver(solver, steps))


def _read_schedule(file: Path) -> Schedule:
    if not file.is_file():
        raise NotFound(f"there is no file {file} (and the only name known is teacher)", param="schedule")
    return Schedule.parse(file.read_bytes())


def _names(out: Path, count: int) -> list[Path]:
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]


def _fault(latent: Tensor, dtype: str) -> str:
    """Why the image of this latent (c, h, w) is not finite."""
    if latent.isfinite().all():
        return "its pixels are not finite, decoded in float32 either"
    return f"its latent is not finite in {dtype}" + "; use bfloat16 or float32" * (dtype == "float16")


def _save(image: Tensor, file: Path) -> None:
    """image (3, H, W) in [0, 1]."""
    from PIL import Image

    from engine.images import levels

    Image.fromarray(levels(image).numpy()).save(file)


def _print_table(counted: StepMacs, branches: list[int], shape: Sequence[int], tokens: int) -> None:
    from rich.console import Console
    from rich.table import Table

    given = f"context of {tokens} token{'s' * (tokens > 1)}" if tokens else "no context"
    table = Table(title=f"{counted.parameters:,} parameters, latent {'×'.join(map(str, shape))}, {given}, one row")
    for column in ("step", "macs", "paper_macs", "of full", "cached, float16"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for branch in (0, *branches):
        name, value = (f"partial, branch {branch}", counted.partial[branch]) if branch else ("full", counted.full)
        cached = f"{2 * prod(counted.features[branch]) / 2**20:.3f} MiB" if branch else ""
        share = f"{value.macs / counted.full.macs:.4f}"
        table.add_row(name, f"{value.macs / 1e9:.4f} G", f"{value.paper_macs / 1e9:.4f} G", share, cached)
    Console().print(table)


if __name__ == "__main__":
    app()
