"""Abandonment: a third of the requests are hung up on in the middle. Their work must stop, and only theirs."""

from __future__ import annotations

import random

from locust import constant_pacing, task

from loadtests.profiles.asking import Asking

PATIENCE = (0.05, 0.4)  # seconds, drawn evenly


class Abandoning(Asking):
    """Waits for one image and not for the next."""

    wait_time = constant_pacing(1)

    @task
    def stay(self) -> None:
        """A cheap image that is waited for."""
        self.ask("draft", tier="draft")

    @task
    def leave(self) -> None:
        """A dear one that is not."""
        self.hang_up("reference", random.uniform(*PATIENCE), tier="reference")

    @task
    def see_it_through(self) -> None:
        """A dear one that is."""
        self.ask("reference", tier="reference")
