"""Abandonment: a third of the requests are hung up on in the middle. Their work must stop, and only theirs."""

from __future__ import annotations

import random

from locust import constant_pacing, task

from loadtests.profiles.image_user import ImageUser

PATIENCE = (0.05, 0.4)  # seconds, drawn evenly


class AbandoningUser(ImageUser):
    """A user who waits for some images and hangs up on others."""

    wait_time = constant_pacing(1)

    @task
    def stay(self) -> None:
        """A cheap image that is waited for."""
        self.ask("draft", tier="draft")

    @task
    def leave(self) -> None:
        """A dear image that is hung up on."""
        self.hang_up("reference", random.uniform(*PATIENCE), tier="reference")

    @task
    def see_it_through(self) -> None:
        """A dear image that is waited for."""
        self.ask("reference", tier="reference")
