"""Two arms: half of the users get one schedule, half another, each named by its digest.

This stands in for experiments until the service assigns arms itself: here the client chooses, by its number.
"""

from __future__ import annotations

from locust import constant_pacing, task

from loadtests.profiles.asking import Asking

ARMS = {"control": "balanced", "treatment": "draft"}  # arm -> whose schedule it gets


class TwoArms(Asking):
    """A user that stays in its arm."""

    wait_time = constant_pacing(2)

    @task
    def generate(self) -> None:
        """One image by the arm's schedule."""
        arm = list(ARMS)[self.number % 2]
        self.ask(arm, schedule=self.offered[ARMS[arm]]["digest"])
