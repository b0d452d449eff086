"""What the peers are asked for: tiers of one model, and how often each is wanted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.folder import Folder
from loadtests.card import FULL, numbered
from registry.catalog import Catalog
from registry.schedule import ModelRef, Schedule, Segment, Solver
from registry.stores.address import open_store

if TYPE_CHECKING:  # torch takes seconds to import, and what drives a service needs none
    from engine.model import Model

MODEL = Path("models/emoji64")
GUIDANCE = 3.0  # of every request: two rows of the UNet
TIERS = ("draft", "balanced", "reference")  # the cheapest first
WEIGHTS = (6, 3, 1)  # most want it cheap, one in ten wants the teacher
FEWER = dict(zip(TIERS, (10, 20, 50), strict=True))  # full steps of a mix that any sampler can run


@dataclass(frozen=True)
class TierMix:
    """One schedule for each of `TIERS`."""

    name: str
    about: str
    schedules: dict[str, Schedule]

    def publish(self, registry: str) -> None:
        """Publish and promote the tiers into a registry."""
        model = self.schedules[TIERS[0]].model.name
        catalog = Catalog(open_store(registry), model, author="loadtests")
        for tier, schedule in self.schedules.items():
            catalog.publish(schedule)
            catalog.promote(tier, schedule.digest)

    @property
    def steps(self) -> Mapping[str, Mapping[int, int]]:
        """How many steps an image of each tier takes, by branch; `FULL` for full ones."""
        return {
            tier: Counter(
                FULL if step.kind == "full" else numbered(step.branch) for step in schedule.steps() if step.kind != "null"
            )
            for tier, schedule in self.schedules.items()
        }


def mixes(model: Model | None = None) -> dict[str, TierMix]:
    """Few-step schedules, as any sampler has them; and such with partial steps, which only a cache makes possible.

    Of this model, or of the bundled one, which then need not be loaded.
    """
    fewer = {tier: made(steps, *[Segment()] * steps, model=model) for tier, steps in FEWER.items()}
    cached = {
        "draft": made(50, *[Segment(partial=(5,), branch=3)] * 5, model=model),
        "balanced": made(50, *[Segment(partial=(2,), branch=3)] * 10, model=model),
        "reference": made(50, *[Segment()] * 50, model=model),
    }
    return {
        "fewer": TierMix("fewer", "10, 20 and 50 full steps", fewer),
        "partial": TierMix("partial", "5 full + 5 partial, 10 full + 10 partial and 50 full steps", cached),
    }


def draw(chance: random.Random) -> str:
    """A tier, as often as it is wanted."""
    return chance.choices(TIERS, WEIGHTS)[0]


def made(teacher_steps: int, *segments: Segment, model: Model | None = None) -> Schedule:
    """DDIM on the model's own spacing, as its pipeline folder says."""
    if model is None:
        ref = ModelRef(name=MODEL.name, family="unet2d-condition", fingerprint=Folder(MODEL).fingerprint())
        solver = Solver(name="ddim", teacher_steps=teacher_steps, spacing="trailing")
    else:
        ref, solver = model.ref, model.solver(model.levels.plain_solver, teacher_steps)
    return Schedule(model=ref, solver=solver, segments=segments)
