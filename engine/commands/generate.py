"""python -m engine generate: one schedule run by hand. Torch is imported only when needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from engine.guidance import OFF, covers, meant, scale_for, validated_scales
from engine.image_size import ImageSize, covers_size
from engine.prompt_syntax import MAX_CHUNKS, PLAIN, PromptSyntax
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.schedule import Schedule, SolverName, teacher

if TYPE_CHECKING:
    from torch import Tensor

    from engine.importing.lora import Lora
    from engine.model import Model
    from engine.source import SourceImage

TEACHER = "teacher"


def generate(
    prompt: Annotated[str | None, typer.Option(help="What to draw: a text or a class; not for unconditional models.")] = None,
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    name: Annotated[str | None, typer.Option(help="What schedules call the model [default: the folder's name].")] = None,
    negative: Annotated[str, typer.Option(help="What to stay away from; needs guidance above 1.")] = "",
    prompt_chunks: Annotated[
        int, typer.Option(min=1, max=MAX_CHUNKS, help="How many times the text encoder's length a prompt may take.")
    ] = 1,
    prompt_syntax: Annotated[PromptSyntax, typer.Option(help="webui: (word:1.3) gives words another weight.")] = PLAIN,
    schedule: Annotated[str, typer.Option(help="A schedule document, or teacher for every step full.")] = TEACHER,
    solver: Annotated[
        SolverName | None, typer.Option(help="Teacher only [default: dpmsolver++, or a distilled model's own].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Teacher only [default: 50, or a distilled model's own].")] = None,
    seed: Annotated[int, typer.Option(help="Of the first image; the next ones count up.")] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 1 or less is off [default: the schedule's, or the model's own]."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels [default: the model's own].")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from; its transparent parts are painted anew.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture as large: what is white, or transparent, is painted anew.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far back in the noise the image begins, up to 1 [default: 0.8; 1 with a mask].")
    ] = None,
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
    files = _files(out, num_images)
    if guidance is not None and not 0 <= guidance < inf:  # which nan is not either
        raise InvalidInput(f"must be a finite number of at least 0, got {guidance}", param="guidance")
    if negative and guidance is not None and guidance <= OFF:
        raise InvalidInput(f"needs guidance above 1, got guidance {guidance}", param="negative")
    asked_size = ImageSize.parse(size) if size is not None else None
    if schedule != TEACHER and (solver is not None or steps is not None):
        raise InvalidInput("--solver and --steps are for teacher; a document brings its own", param="schedule")
    if lora and compiled:
        raise InvalidInput("a model with LoRAs added runs as it is; import them, or leave --compile out", param="lora")
    for option, value in (("mask", mask), ("strength", strength)):
        if image is None and value is not None:
            raise InvalidInput("is of an image to start from: say --image", param=option)

    from engine import loading, sampler
    from engine.adapters import adapted, read_loras
    from engine.fresh_noise import stacked
    from engine.importing.lora import parse_lora
    from engine.source import encoded

    added = read_loras(model, [parse_lora(text) for text in lora]) if lora else []  # before the weights, which take longer
    loaded = adapted(loading.load(model, device, dtype, name, compiled=compiled), added)
    at = asked_size or loaded.image_size
    other = loaded.other_size(at)
    document = _teacher(loaded, solver, steps) if schedule == TEACHER else _read_schedule(Path(schedule))
    program, whole = loaded.compile(document, other), loaded.compile(teacher(loaded.ref, document.solver), other)
    scale = meant(guidance) if guidance is not None else scale_for(document, loaded.usual_guidance)
    texts = [prompt, negative] if _guided(loaded, scale, negative) else [prompt]
    start = None if image is None else _Start.of(loaded, image, mask, at, strength)
    if start:
        program, whole = (start.image.started(one, start.strength) for one in (program, whole))
    chunks = _chunks(loaded, texts, prompt_chunks, prompt_syntax)
    for notice in loaded.notices:
        _say(notice.message)
    for line in (*_about_loras(added, document), *_about_schedule(loaded, document, scale, at), *_about_start(start, at)):
        _say(line)

    seeds = range(seed, seed + num_images)
    condition = loaded.encode([texts[0] or ""] * num_images, scale, other, chunks, prompt_syntax)
    away = loaded.negative([negative] * num_images, other, chunks, prompt_syntax) if len(texts) == 2 else None
    source, condition, away = encoded(loaded, start.image, condition, away) if start else (None, condition, away)
    fresh = stacked([loaded.noises(number, other) for number in seeds])
    latents = sampler.generate(loaded.network, program, fresh(0), condition, away, scale, fresh, source)
    images = loaded.decode(latents)

    counts, of = program.counts, f"of the teacher's {len(whole.steps)}"
    print(f"schedule   {document.digest[:12]}, {document.solver.name}")
    print(f"steps      {len(program.steps)} computed {of}: {counts['full']} full, {counts['partial']} partial")
    macs = loaded.macs_at(other, chunks)
    print(f"size       {at}" + (f", from {image} at strength {start.strength:g}" if start else ""))
    print(f"MACs       {macs.of_program(program, len(texts)) / 1e9:.4f} G per image")
    print(f"relative   {macs.relative(program, whole):.4f} of the teacher's MACs")
    if start:
        images = start.image.shown_around(images)
    _save(images, latents, dict(zip(seeds, files, strict=True)), loaded.decoder.overflowed, dtype)


def _files(out: Path, count: int) -> list[Path]:
    """Where the images go. Raises `InvalidInput` and `NotFound` where they cannot."""
    if count < 1:
        raise InvalidInput(f"must be at least 1, got {count}", param="num_images")
    if out.suffix.lower() != ".png":
        raise InvalidInput(f"must be a .png file, got {out}", param="out")
    if not out.parent.is_dir():
        raise NotFound(f"there is no folder {out.parent}", param="out")
    files = [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
    for file in files:
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder", param="out")
    return files


def _teacher(model: Model, solver: SolverName | None, steps: int | None) -> Schedule:
    own = model.teacher_solver if model.few_steps else "dpmsolver++"
    count, limit = (model.few_steps or 50) if steps is None else steps, len(model.levels.alphas_cumprod)
    if not 1 <= count <= limit:
        raise InvalidInput(f"must be between 1 and {limit}, got {count}", param="steps")
    return teacher(model.ref, model.solver(solver or own, count))


def _read_schedule(file: Path) -> Schedule:
    if not file.is_file():
        raise NotFound(f"there is no file {file} (and the only name known is {TEACHER})", param="schedule")
    return Schedule.parse(file.read_bytes())


def _guided(model: Model, scale: float, negative: str) -> bool:
    """Whether an image takes two UNet rows. Raises `InvalidInput` for a negative prompt that would have no effect."""
    guided = model.rows(scale) == 2
    if negative and not guided:
        why = "needs guidance above 1: this model is not guided unless --guidance says so"
        if model.embeds_guidance:
            why = "has no effect: this model takes the guidance scale as an input, and guides away from nothing"
        raise InvalidInput(why, param="negative")
    return guided


def _chunks(model: Model, texts: Sequence[str | None], most: int, syntax: PromptSyntax) -> int:
    """Of the context: as many as the longest text takes. Says what of them is not read.

    Raises `InvalidInput` where there is nothing to draw, or the model reads no texts that could be long or weighted.
    """
    from engine.prompts import NoPrompts

    if texts[0] is None and not isinstance(model.prompts, NoPrompts):
        raise InvalidInput("say what this model should draw", param="prompt")
    for option, asked in (("prompt_chunks", most > 1), ("prompt_syntax", syntax != PLAIN)):
        if asked and not model.prompts.takes_chunks:
            which = "is of models whose texts CLIP reads, which T5 does here"
            raise InvalidInput(
                which if model.prompts.reads_texts else "is of models that read texts, which this one does not", param=option
            )
    readings = [model.prompts.reading(text or "", most, syntax) for text in texts]
    for option, read in zip(("prompt", "negative"), readings, strict=False):
        if read.cut:
            tokens = read.tokens or model.prompts.tokens
            length = f"{tokens} tokens" if most == 1 else f"{most} × {tokens} tokens"
            more = " (--prompt-chunks allows more)" if model.prompts.takes_chunks and most < MAX_CHUNKS else ""
            _say(f"{option}: {read.reader} reads {length}{more} and ignored the end: {read.cut}")
    return max(read.chunks for read in readings)


def _about_loras(added: Sequence[Lora], document: Schedule) -> Iterator[str]:
    for one in added:
        changed = ", ".join(f"{count} layers of {component}" for component, count in one.layers().items())
        yield f"lora: {one.file.path.name} × {one.scale:g} changes {changed}"
        yield from (f"lora: {note}" for note in one.notes)
    if added and document.computed < document.solver.teacher_steps:
        yield "lora: the schedule was searched without it, and is not measured on it"


def _about_schedule(model: Model, document: Schedule, scale: float, size: ImageSize) -> Iterator[str]:
    """Where it runs as it was not measured."""
    validated = validated_scales(document)
    if validated and not covers(document, scale):
        yield f"guidance: the schedule was validated at {', '.join(map('{:g}'.format, validated))}"
    if not covers_size(document, size, model.image_size):
        yield f"size: the schedule was not measured at {size}"


class _Start(NamedTuple):
    """What the images start from. came: the size that it had."""

    image: SourceImage
    came: ImageSize
    strength: float

    @classmethod
    def of(cls, model: Model, file: Path, mask: Path | None, size: ImageSize, strength: float | None) -> _Start:
        """Raises `NotFound` and `InvalidInput` naming the option."""
        from engine.input_image import opened
        from engine.source import SourceImage, usual_strength

        picture = opened(_bytes(file, "image"), "image")
        shape = None if mask is None else opened(_bytes(mask, "mask"), "mask")
        image = SourceImage.of(picture, shape, size, model.decoder.scale)
        return cls(image, picture.size, usual_strength(image) if strength is None else strength)


def _bytes(file: Path, option: str) -> bytes:
    if not file.is_file():
        raise NotFound(f"there is no file {file}", param=option)
    return file.read_bytes()


def _about_start(start: _Start | None, size: ImageSize) -> Iterator[str]:
    if start and start.came.width * size.height != start.came.height * size.width:
        yield f"image: it came as {start.came} and was stretched to {size}"


def _save(images: Tensor, latents: Tensor, files: dict[int, Path], overflowed: bool, dtype: str) -> None:
    """Images (n, 3, H, W) in [0, 1] of these latents to the files of their seeds. Raises `FlexiError` for those not finite."""
    from PIL import Image

    from engine.images import finite, levels

    failed = []
    for (seed, file), good, image, latent in zip(files.items(), finite(images).tolist(), images, latents, strict=True):
        if good:
            Image.fromarray(levels(image).numpy()).save(file)
            print(f"image      {file}, seed {seed}")
        else:
            failed.append((seed, latent))
    if overflowed:
        print(f"decoder    in a wider type, because it overflowed in {dtype}")
    if failed:
        seeds = ", ".join(str(seed) for seed, _ in failed)
        raise FlexiError(f"no image of seed {seeds}: {_fault(failed[0][1], dtype)}")


def _fault(latent: Tensor, dtype: str) -> str:
    """Why the image of this latent (c, h, w) is not finite."""
    if latent.isfinite().all():
        return "its pixels are not finite, decoded in float32 either"
    return f"its latent is not finite in {dtype}" + "; use bfloat16 or float32" * (dtype == "float16")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
