"""What a search of a distilled model is asked for: its few steps with its own solver, the guidance that it was made for, and
ceilings that so few steps can keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.guidance import OFF
from engine.loading import usual
from engine.model import Model
from registry.errors import InvalidInput
from registry.schedule import SolverName
from search_jobs.baselines import usual_solvers
from search_jobs.config import BUDGETS, FEWEST_STEPS, JobConfig

TIERS = {"best": 3 / 4, "balanced": 1 / 2, "fast": 3 / 8, "draft": 1 / 4}  # among four steps


def solvers(model: Model) -> tuple[SolverName, ...]:
    """Those that schedules of a search may have: of a distilled model its own, whose steps it was taught."""
    if model.few_steps:
        return (model.teacher_solver,)
    return tuple(solver for solver in usual_solvers(model.levels) if model.levels.walks[solver].refusal is None)


def settings_of(folder: Path, name: str | None) -> dict[str, Any]:
    """A search's settings for the model in a folder where nobody says others: its guidance scale, and all of a distilled one's.

    No weights are read. Raises `InvalidInput` for a model of too few steps.
    """
    steps, guidance = usual(folder, name)
    if steps is None:
        return {"guidance": guidance}
    refuse_few(name or folder.name, steps)
    return {"teacher_steps": steps, "guidance": guidance, "tiers": TIERS, "budgets": ()}


def usual_budgets(config: JobConfig) -> list[float]:
    """The relative costs at which searches are compared: the usual ones, where so few steps can keep them all."""
    return list(BUDGETS) if min(BUDGETS) * config.teacher_steps >= 1 else config.ceilings


def refuse_distilled(model: Model, config: JobConfig) -> None:
    """Raises `InvalidInput` for a distilled model with another teacher than it was made for, or of too few steps."""
    if model.few_steps is None:
        return
    refuse_few(model.ref.name, model.few_steps)
    what = taught(model.ref.name, model.few_steps)
    if config.teacher_steps != model.few_steps and model.teacher_solver != "lcm":  # which was taught all numbers
        raise InvalidInput(f"{what}; say {model.few_steps}, got {config.teacher_steps}", param="teacher_steps")
    if config.guidance > OFF and not model.embeds_guidance:
        raise InvalidInput(f"{what}; say 1, got {config.guidance:g}", param="guidance")


def refuse_few(name: str, steps: int) -> None:
    """Raises `InvalidInput` for a model that was distilled to so few steps that no schedule can be cheaper."""
    if steps < FEWEST_STEPS:
        text = f"{taught(name, steps)}: there is nothing to leave out among fewer than {FEWEST_STEPS}; serve it as it is"
        raise InvalidInput(text, param="model")


def taught(name: str, steps: int) -> str:
    """What such a model is, as errors say it."""
    return f"{name} was distilled to {steps} step{'s' * (steps > 1)} without guidance"
