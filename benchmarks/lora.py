"""What a schedule fitted on a model is worth on the same model with a LoRA fused into it.

    python -m benchmarks.lora --lora models/emoji64-lora/grey.safetensors:1

Three hand-set schedules, each with corrections fitted on the base, with corrections fitted on the fused model, and without any;
all are held against the fused model's own teacher, from other prompts and noise than those of the fits. What the first are
worth on the base itself, against its teacher, stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from engine.importing.model_import import ImportOptions, import_model
from engine.loading import load
from engine.model import Model
from evaluation import extractor
from registry.commands.command_line import run_command
from registry.schedule import Schedule, SolverName
from search_jobs.baselines import Baselines
from search_jobs.config import read_prompts
from search_jobs.objective import Objective, Sample
from search_jobs.stages import halves

# Solver, full steps, one in how many is full, branch: the best uniform ones near the ceilings of three tiers on emoji64.
SCHEDULES: Mapping[str, tuple[SolverName, int, int, int]] = {
    "7+7 s=3 ddim": ("ddim", 7, 2, 3),
    "3+6 s=3 dpmsolver++": ("dpmsolver++", 3, 3, 3),
    "3+3 s=3 ddim": ("ddim", 3, 2, 3),
}


def main(
    lora: Annotated[str, typer.Option(help="FILE or FILE:SCALE.")],
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder with prompts.txt and clip/.")] = Path(
        "models/emoji64"
    ),
    fits: Annotated[int, typer.Option(help="Images that corrections are fitted on.")] = 4,
    images: Annotated[int, typer.Option(help="Images that are measured.")] = 6,
    steps: Annotated[int, typer.Option(help="Of the teacher.")] = 20,
    guidance: Annotated[float, typer.Option(help="Scale of both.")] = 3.0,
    seed: int = 1,
) -> None:
    """Print PSNR and rFID to the fused model's teacher, and what the LoRA does to the teacher's own images."""
    torch.set_num_threads(1)
    looks = extractor(model / "clip", "cpu")
    seen, held_out = halves(read_prompts(model / "prompts.txt"))
    fitted_on, measured_on = Sample.draw(seen, fits, seed), Sample.draw(held_out, images, seed + 1)
    with TemporaryDirectory() as folder:
        import_model(ImportOptions(model, Path(folder) / "fused", (lora,)))
        base, fused = load(model), load(Path(folder) / "fused")

    def fitted(one: Model) -> list[Schedule]:
        objective = Objective(one, looks, fitted_on, steps, guidance, fitting=True)
        return [evaluation.schedule for evaluation in objective.evaluate_all(plain(one), fitting=True)]

    own = fitted(base)
    objective, without = (Objective(one, looks, measured_on, steps, guidance) for one in (fused, base))
    rows = {
        "of the base, on the base": (without, own),
        "fitted on the base": (objective, [schedule.model_copy(update={"model": fused.ref}) for schedule in own]),
        "fitted on the fused model": (objective, fitted(fused)),
        "without corrections": (objective, plain(fused)),
    }
    for what, (measured, schedules) in rows.items():
        for name, evaluation in zip(SCHEDULES, measured.evaluate_all(schedules), strict=True):
            found = evaluation.measurement
            print(f"{name:<20} {what:<26} cost {found.cost:.3f}  PSNR {found.psnr:.2f} dB  rFID {found.rfid:.3f}", flush=True)
    apart = objective.measure(objective.teacher, without.teacher_outputs.images)
    print(f"the base's own images, from the same noise: PSNR {apart.psnr:.2f} dB  rFID {apart.rfid:.1f}")


def plain(model: Model) -> list[Schedule]:
    """The schedules as a user sets them by hand."""
    baselines = Baselines(model.ref, model.levels, model.network.branches, lambda _: 0.0)
    return [baselines.uniform(*numbers) for numbers in SCHEDULES.values()]


if __name__ == "__main__":
    run_command(main)
