"""What the peers are asked for: tiers of one model, and how often each is wanted."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from engine.folder import Folder
from engine.macs import StepMacs
from registry.catalog import Catalog
from registry.schedule import ModelRef, Schedule, Segment, Solver
from registry.stores.address import open_store

MODEL = Path("models/emoji64")
TIERS = ("draft", "balanced", "reference")  # the cheapest first
WEIGHTS = (6, 3, 1)  # most want it cheap, one in ten wants the teacher


@dataclass(frozen=True)
class TierMix:
    """One schedule for each of `TIERS`."""

    name: str
    about: str
    schedules: dict[str, Schedule]

    def publish(self, registry: str) -> None:
        """Publish and promote the tiers into a registry."""
        catalog = Catalog(open_store(registry), MODEL.name, author="loadtests")
        for tier, schedule in self.schedules.items():
            catalog.publish(schedule)
            catalog.promote(tier, schedule.digest)

    def shares(self, macs: StepMacs) -> dict[str, float]:
        """What an image of each tier costs, in full steps of one UNet row: a partial step counts as its share of the MACs."""
        full = macs.of("full", 0)
        return {
            tier: sum(macs.of(step.kind, step.branch) for step in schedule.steps() if step.kind != "null") / full
            for tier, schedule in self.schedules.items()
        }


def mixes() -> dict[str, TierMix]:
    """Few-step schedules, as any sampler has them; and such with partial steps, which only a cache makes possible."""
    fewer = {tier: made(steps, *[Segment()] * steps) for tier, steps in zip(TIERS, (10, 20, 50), strict=True)}
    cached = {
        "draft": made(50, *[Segment(partial=(5,), branch=3)] * 5),
        "balanced": made(50, *[Segment(partial=(2,), branch=3)] * 10),
        "reference": made(50, *[Segment()] * 50),
    }
    return {
        "fewer": TierMix("fewer", "10, 20 and 50 full steps", fewer),
        "partial": TierMix("partial", "5 full + 5 partial, 10 full + 10 partial and 50 full steps", cached),
    }


def draw(chance: random.Random) -> str:
    """A tier, as often as it is wanted."""
    return chance.choices(TIERS, WEIGHTS)[0]


def made(teacher_steps: int, *segments: Segment) -> Schedule:
    """DDIM on the bundled model's own spacing, as its pipeline folder says."""
    ref = ModelRef(name=MODEL.name, family="unet2d-condition", fingerprint=Folder(MODEL).fingerprint())
    return Schedule(model=ref, solver=Solver(name="ddim", teacher_steps=teacher_steps, spacing="trailing"), segments=segments)
