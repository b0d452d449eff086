"""Mixed sizes: every size that the service has, of tiers that are as mixed as ever."""

from __future__ import annotations

import random

from locust import constant_pacing, task

from loadtests.mixes import draw
from loadtests.profiles.image_user import ImageUser


class MixedSizesUser(ImageUser):
    """A user who wants another size each time."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One image of some tier and size."""
        tier = draw(random.Random())
        self.ask(tier, tier=tier, size=random.choice(self.sizes))
