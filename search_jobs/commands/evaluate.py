"""python -m search_jobs evaluate: one schedule of any origin, measured against the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engine.guidance import scale_for
from engine.image_size import ImageSize
from search_jobs.commands.options import FEATURES_HELP, Batch, Compile, Guidance, ModelName, guidance_scale

err = Console(stderr=True)


def evaluate(
    schedule: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A schedule document.")],
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")],
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt or class a line.")] = None,
    features: Annotated[Path | None, typer.Option(help=FEATURES_HELP)] = None,
    real: Annotated[
        Path | None, typer.Option(help="A folder of real images, or their statistics: adds the distance to them.")
    ] = None,
    name: ModelName = None,
    all_prompts: Annotated[
        bool, typer.Option("--all-prompts", help="Not half of the file: for one that no search saw, or with --real.")
    ] = False,
    images: Annotated[int, typer.Option(min=2, max=100_000)] = 32,
    teacher_steps: Annotated[
        int | None, typer.Option(min=4, max=900, help="Steps of the teacher (DDIM) [default: 50, or a distilled model's own].")
    ] = None,
    guidance: Guidance = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels [default: the model's own].")] = None,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000, help="Of the noise, which is no search's.")] = 0,
    batch: Batch = None,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: Compile = "auto",
) -> None:
    """Measure one schedule against the teacher and print the figures as JSON; with --real, the teacher's own as well.

    Noise is that of no search. Prompts are the half of the file that a search on it holds out; a search on another file may
    have seen them. Real pictures are of all that the model draws: a distance to them is of all prompts only.
    """
    from engine.loading import usual
    from evaluation import bundled, extractor
    from evaluation.real import real_gaussian
    from registry.schedule import Schedule
    from search_jobs.config import TEACHER_STEPS
    from search_jobs.evaluator import cut_prompts, opened, prompts_of
    from search_jobs.objective import Objective
    from search_jobs.stages import fresh, halves

    document = Schedule.parse(schedule.read_bytes())
    scale = guidance_scale(guidance, scale_for(document, usual(model, name).guidance))
    loaded, looks = opened(str(model), device, dtype, name, compiled), extractor(features or bundled(model), device)
    texts = prompts_of(prompts, loaded.prompts)
    sample = fresh(texts if all_prompts else halves(texts)[1], images, seed)
    if cut := cut_prompts(loaded.prompts, texts):
        err.print(f"{cut} of {len(texts)} prompts are longer than the {loaded.prompts.tokens} tokens that the model reads")
    shown = ImageSize.parse(size) if size else loaded.image_size
    steps = teacher_steps or loaded.few_steps or TEACHER_STEPS
    held_out = ["noise"] if all_prompts or len(set(texts)) < 2 else ["noise", "prompts"]
    if real and not all_prompts and len(set(texts)) > 1:
        err.print("--real: half of the prompts are held against real pictures of all, unless --all-prompts is given")
    pictures = real_gaussian(real, looks, shown) if real else None
    objective = Objective(
        loaded, looks, sample, steps, scale, batch, bootstrap=True, real=pictures, size=loaded.other_size(shown)
    )
    figures = {"features": looks.name, "size": str(shown), "held_out": held_out, "prompts_cut": cut}
    figures |= objective.evaluate(document).measurement.document()
    if pictures is not None:
        figures["teacher_to_real"] = objective.measure(objective.teacher, objective.teacher_outputs.images).to_real
    print(json.dumps(figures))
