"""What a search of a distilled model is asked for: the steps that it was made for, and no guidance."""

from __future__ import annotations

from engine.guidance import OFF
from engine.model import Model
from registry.errors import InvalidInput
from search_jobs.config import FEWEST_STEPS, JobConfig


def refuse_distilled(model: Model, config: JobConfig) -> None:
    """Raises `InvalidInput` for a distilled model with another teacher than it was made for, or of too few steps."""
    steps = model.few_steps
    if steps is None:
        return
    distilled = f"{model.ref.name} was distilled to {steps} step{'s' * (steps > 1)} without guidance"
    if steps < FEWEST_STEPS:
        text = f"{distilled}: there is nothing to leave out among fewer than {FEWEST_STEPS}; serve it as it is"
        raise InvalidInput(text, param="model")
    if config.teacher_steps != steps:
        raise InvalidInput(f"{distilled}; say {steps}, got {config.teacher_steps}", param="teacher_steps")
    if config.guidance > OFF:
        raise InvalidInput(f"{distilled}; say 1, got {config.guidance:g}", param="guidance")
