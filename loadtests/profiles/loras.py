"""Mixed LoRAs and sizes: every set at every size that the service has, beside images of the model itself."""

from __future__ import annotations

import random
from typing import Any

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser

WEIGHTS = {"draft": 6, "balanced": 3, "reference": 1}  # as in `loadtests.profiles.sizes`
SCALES = (0.5, 1.0)  # of each LoRA: every other scale is another set
WITHOUT = 0.4  # the share of images that want none


class MixedLorasUser(ImageUser):
    """A user who wants another look each time."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One image of some tier and size, with some LoRA or without."""
        tiers = [tier for tier in WEIGHTS if tier in self.offered]
        tier = random.choices(tiers, [WEIGHTS[tier] for tier in tiers])[0]
        self.ask(tier, tier=tier, size=random.choice(self.sizes), loras=self._loras())

    def _loras(self) -> list[dict[str, Any]]:
        if not self.loras or random.random() < WITHOUT:
            return []
        return [{"name": random.choice(self.loras), "scale": random.choice(SCALES)}]
