"""What a service exports at /metrics, as far as load tests look at it."""

from __future__ import annotations

import re
import time

import httpx


def macs(address: str) -> float:
    """The sum of flexi_macs_total over all its labels."""
    return sum(values(address, "flexi_macs_total"))


def wait_until_idle(address: str, patience: float = 60.0) -> None:
    """Until nothing is in the engine: the rows of the last hang-up are dropped at its next turn."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        if sum(values(address, "flexi_inflight_images") + values(address, "flexi_queue_images")) == 0:
            return
        time.sleep(0.2)
    raise RuntimeError(f"rows are in the engine {patience:.0f} s after the last client left")


def values(address: str, name: str) -> list[float]:
    """A metric's values, one for each set of labels."""
    text = httpx.get(f"{address}/metrics").raise_for_status().text
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)]
