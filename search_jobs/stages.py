"""The stages of a search: which images each of them looks at. No two stages that decide and report share their noise."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from search_jobs.config import JobConfig
from search_jobs.objective import Sample

RUNGS = ("screen", "search", "select")  # of the ladder that children climb
FITTED = ("screen", "search")  # where a schedule gets its corrections; later stages take them as they are


class Stage(NamedTuple):
    """One sample. fitted: corrections are fitted on it. bootstrap: its figures come with intervals."""

    name: str
    sample: Sample
    fitted: bool
    bootstrap: bool


def stages(config: JobConfig, prompts: Sequence[str]) -> dict[str, Stage]:
    """By name. `screen` looks at the first images of `search`; half of the prompts are held out from all but `held-out`."""
    shuffled = list(prompts)
    Random(config.seed).shuffle(shuffled)
    half = len(shuffled) // 2
    seen, unseen = shuffled[:half], shuffled[half:]
    search = Sample.draw(seen, config.images, 4 * config.seed + 1)
    samples = {
        "screen": search.first(config.screen),
        "search": search,
        "select": Sample.draw(seen, config.select, 4 * config.seed + 2),
        "finals": Sample.draw(seen, config.finals, 4 * config.seed + 3),
        "held-out": Sample.draw(unseen, config.heldout, 4 * config.seed + 4),
    }
    return {name: Stage(name, sample, name in FITTED, name == "held-out") for name, sample in samples.items()}
