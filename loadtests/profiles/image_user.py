"""The user that all profiles are made of: asks, checks the answer, and keeps what it saw in `stats`."""

from __future__ import annotations

import json
import os
import random
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any

from locust import HttpUser, events
from requests import RequestException, Timeout
from urllib3.exceptions import ReadTimeoutError

from loadtests.client_stats import ClientStats

PROMPTS = ("red heart", "cat face", "tomato", "sunflower", "tiger face", "hamburger")
TIMEOUT = 300.0  # seconds; the service's own limit comes first

stats = ClientStats()
_numbers = count()


@events.quitting.add_listener
def write_stats(**_: Any) -> None:
    """Leave the statistics for `loadtests.run`, which knows what the server exported."""
    if path := os.environ.get("LOADTEST_STATS"):
        Path(path).write_text(json.dumps(vars(stats)))


class ImageUser(HttpUser):
    """One client that waits for each image before it asks for the next."""

    abstract = True

    def on_start(self) -> None:
        """Take a number, and ask the service for its tiers, sizes and LoRAs."""
        self.number = next(_numbers)
        stats.joined(self.number)
        page = self.client.get("/v1/tiers", name="tiers").json()
        self.offered, self.sizes = {tier["tier"]: tier for tier in page["tiers"]}, page["sizes"]
        self.loras: list[str] = page["loras"]

    def ask(self, name: str, unit: str | None = None, **choice: Any) -> None:
        """One image by a tier or a schedule; the answer must be what was asked for and bill its MACs.

        A unit's image is booked under the unit's arm, which must always be the same.
        """
        body = self._body(choice) | ({"unit": unit} if unit else {})
        with self.client.post("/generate", json=body, name=name, timeout=TIMEOUT, catch_response=True) as reply:
            if reply.status_code == 429 and "Retry-After" in reply.headers:
                stats.refused[name] += 1
                reply.success()
                sleep(float(reply.headers["Retry-After"]))
                return
            self._book(reply, name, choice, unit)

    def hang_up(self, name: str, seconds: float, **choice: Any) -> None:
        """Ask for an image and close the connection after `seconds`; what comes sooner is an answer like any other."""
        with self.client.post("/generate", json=self._body(choice), name=name, timeout=seconds, catch_response=True) as reply:
            if _hung_up(reply.error):
                stats.abandoned[name] += 1
                reply.success()
            else:
                self._book(reply, name, choice)

    def _book(self, reply: Any, name: str, choice: dict[str, Any], unit: str | None = None) -> None:
        fault = _fault(reply, choice)
        if unit and not fault:
            name = str(reply.json()["arm"])
            if not stats.assigned(unit, name):
                fault = f"{unit} was in {stats.arms[unit]} and is in {name} now"
        if fault:
            stats.failures[name] += 1
            reply.failure(fault)
        else:
            stats.answered(name, self.number, reply.request_meta["response_time"], reply.json()["macs"])

    def _body(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": random.choice(PROMPTS), "seed": random.randrange(2**31), **choice}


def _hung_up(error: Exception | None) -> bool:
    """Whether the client's own time was over; whatever else breaks a connection is the service's doing.

    In the middle of an answer, requests raises no `Timeout` but a `ConnectionError` that holds urllib3's.
    """
    held = error.args if isinstance(error, RequestException) else ()
    return isinstance(error, Timeout) or any(isinstance(one, ReadTimeoutError) for one in held)


def _fault(reply: Any, choice: dict[str, Any]) -> str | None:
    if reply.error:
        return f"no answer: {reply.error}"
    if reply.status_code != 200:
        return f"status {reply.status_code}: {reply.text[:200]}"
    answer = reply.json()
    answer["loras"] = [{"name": lora["name"], "scale": lora["scale"]} for lora in answer["loras"]]
    wrong = [f"asked for {field} {value}, got {answer[field]}" for field, value in choice.items() if answer[field] != value]
    return wrong[0] if wrong else None if answer["macs"] > 0 else f"billed {answer['macs']} MACs"
