"""Mixed sizes: every size that the service has, of tiers that are as mixed as ever."""

from __future__ import annotations

import random

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser

# Those of `loadtests.mixes`, which is not imported: it would import torch, and the seconds that this takes end the run.
WEIGHTS = {"draft": 6, "balanced": 3, "reference": 1}


class MixedSizesUser(ImageUser):
    """A user who wants another size each time."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One image of some tier and size."""
        tiers = [tier for tier in WEIGHTS if tier in self.offered]
        tier = random.choices(tiers, [WEIGHTS[tier] for tier in tiers])[0]
        self.ask(tier, tier=tier, size=random.choice(self.sizes))
