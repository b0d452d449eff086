"""The stages of a search. A stage is a sample of prompts and noise (`objective.Sample`) that serves one purpose.

`screen` discards most children; corrections are fitted on `search`, of which `screen` is the first few images; `select` chooses
parents; `finals` decides among finalists; `held-out` gives the figures that are reported. All are at the search's own guidance
scale and size; at each other scale what was chosen gets its corrections from `search at` it, and its figures from `held-out at`
it; at each other size it gets figures alone, from `held-out at` that. No
two stages that decide and report share their noise. All searches split the same prompts alike, whatever their seed: what one
holds out no other one was fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from engine.image_size import ImageSize
from search_jobs.config import MAX_SEED, JobConfig
from search_jobs.objective import Sample

RUNGS = ("screen", "search", "select")  # of the ladder that children climb
FITTED = ("screen", "search")  # where a schedule gets its corrections; later stages take them as they are
EXTRAPOLATED = "search"  # where it gets extrapolations too, which take UNet calls of their own: `screen` discards without
STAGES = 4  # that draw noise of their own, so a search of seed s draws from 4 s + 1 to 4 s + 4
FRESH = STAGES * (MAX_SEED + 1) + 1  # the first draw that is no search's, by its numbers: torch takes 32 bits of them


class Stage(NamedTuple):
    """A sample with a purpose. fitted: corrections are fitted on it; extrapolated: with those of deep features.

    bootstrap: its figures come with intervals. size: of the images; None is the model's own.
    """

    name: str
    sample: Sample
    guidance: float
    fitted: bool
    bootstrap: bool
    extrapolated: bool = False
    size: ImageSize | None = None


def halves(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The prompts that searches see, and those that they hold out."""
    shuffled = list(prompts)
    Random(0).shuffle(shuffled)
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def fresh(prompts: Sequence[str], count: int, seed: int) -> Sample:
    """`count` images over the prompts in turn, of noise that no stage of any search draws."""
    return Sample.draw(prompts, count, FRESH + seed)


def stages(config: JobConfig, prompts: Sequence[str]) -> dict[str, Stage]:
    """All stages, by name. Half of the prompts are in `held-out` alone."""
    seen, unseen = halves(prompts)
    first = STAGES * config.seed + 1
    search = Sample.draw(seen, config.images, first)
    samples = {
        "screen": search.first(config.screen),
        "search": search,
        "select": Sample.draw(seen, config.select, first + 1),
        "finals": Sample.draw(seen, config.finals, first + 2),
        "held-out": Sample.draw(unseen, config.heldout, first + 3),
    }
    at, size = config.guidance, config.size
    own = [
        Stage(name, sample, at, name in FITTED, name == "held-out", config.extrapolate and name == EXTRAPOLATED, size)
        for name, sample in samples.items()
    ]
    fits = [
        Stage(fit_at(scale), samples["search"], scale, True, False, config.extrapolate, size) for scale in config.other_scales
    ]
    figures = samples["held-out"].first(config.scaled)
    reports = [Stage(figures_at(scale), figures, scale, False, True, size=size) for scale in config.other_scales]
    sizes = [Stage(figures_at_size(other), samples["held-out"], at, False, True, size=other) for other in config.other_sizes]
    return {stage.name: stage for stage in (*own, *fits, *reports, *sizes)}


def fit_at(scale: float) -> str:
    """The stage that fits corrections at another guidance scale than the search's own."""
    return f"search at {scale:g}"


def figures_at(scale: float) -> str:
    """The stage that gives the figures there."""
    return f"held-out at {scale:g}"


def figures_at_size(size: ImageSize) -> str:
    """The stage that gives the figures at another size than the search's own."""
    return f"held-out at {size}"
