"""Steady: every user wants the default tier, at most once in two seconds."""

from __future__ import annotations

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser


class SteadyUser(ImageUser):
    """A user of the tier `balanced` alone."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One balanced image."""
        self.ask("balanced", tier="balanced")
