"""Arms: an experiment splits a tier between two schedules. The service chooses, by the unit that each request names."""

from __future__ import annotations

from itertools import count

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser

VISITS = 2  # of each unit, so that it can be seen to stay in its arm


class ExperimentUser(ImageUser):
    """One unit after the other at the same client: each asks `VISITS` times."""

    wait_time = constant_pacing(2)

    def on_start(self) -> None:
        """Begin to count visits."""
        super().on_start()
        self.visits = count()

    @task
    def generate(self) -> None:
        """One image of the tier, for whoever it is now."""
        self.ask("balanced", unit=f"visitor-{self.number}-{next(self.visits) // VISITS}", tier="balanced")
