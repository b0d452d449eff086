"""A small mixed-tier profile: most users want it cheap, some want it good, one in twenty wants the teacher."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from locust import HttpUser, constant_pacing, events, task

PROMPTS = ("red heart", "cat face", "tomato", "sunflower", "tiger face", "hamburger")
MIX = {"draft": 8, "fast": 6, "balanced": 4, "best": 2, "reference": 1}

billed: Counter[str] = Counter()  # MACs by tier, as the answers state them


@events.quitting.add_listener
def write_bill(**_: Any) -> None:
    """Leave the sum of the answers' MACs for whoever compares it with the exported ones."""
    if path := os.environ.get("LOADTEST_BILL"):
        Path(path).write_text(json.dumps(billed))


class MixedTiers(HttpUser):
    """One client that waits for each image before it asks for the next, at most one request in two seconds."""

    wait_time = constant_pacing(2)

    def on_start(self) -> None:
        """Ask only for tiers that this service has."""
        offered = {tier["tier"] for tier in self.client.get("/v1/tiers", name="tiers").json()["tiers"]}
        self.tiers = {tier: weight for tier, weight in MIX.items() if tier in offered}

    @task
    def generate(self) -> None:
        """One image; the answer must be of the tier that was asked for and bill its MACs."""
        tier = random.choices(list(self.tiers), weights=list(self.tiers.values()))[0]
        body = {"prompt": random.choice(PROMPTS), "tier": tier, "seed": random.randrange(2**31)}
        with self.client.post("/generate", json=body, name=tier, catch_response=True) as reply:
            if reply.status_code == 200:
                answer = reply.json()
                if answer["tier"] != tier or answer["macs"] <= 0:
                    reply.failure(f"asked for {tier}, got {answer['tier']} with {answer['macs']} MACs")
                billed[tier] += answer["macs"]
