"""Mixed tiers: most requests want it cheap, some want it good, one in twenty wants the teacher."""

from __future__ import annotations

import random

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser

WEIGHTS = {"draft": 8, "fast": 6, "balanced": 4, "best": 2, "reference": 1}  # of those that the service has


class MixedTiersUser(ImageUser):
    """A user of every tier, of cheap ones most."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One image of some tier."""
        tiers = [tier for tier in WEIGHTS if tier in self.offered]
        tier = random.choices(tiers, [WEIGHTS[tier] for tier in tiers])[0]
        self.ask(tier, tier=tier)
