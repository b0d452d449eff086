"""Burst: two users, suddenly many, two again. Refusals are allowed when they say when to come back."""

from __future__ import annotations

from locust import LoadTestShape, constant_pacing

from loadtests.profiles.mixed import MixedTiersUser

QUIET, MANY = 2, 40  # users
BEGINS, ENDS, OVER = 10, 25, 45  # seconds


class BurstUser(MixedTiersUser):
    """An impatient user: one request a second."""

    wait_time = constant_pacing(1)


class BurstShape(LoadTestShape):
    """Two users, then forty for fifteen seconds, then two again."""

    def tick(self) -> tuple[int, float] | None:
        """(users, users that may start or end in a second); None ends the run."""
        seconds = self.get_run_time()
        if seconds > OVER:
            return None
        return (MANY, MANY) if BEGINS <= seconds < ENDS else (QUIET, MANY)


MixedTiersUser.abstract = True  # locust would run it too
