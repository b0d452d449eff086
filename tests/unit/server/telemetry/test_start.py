"""A start is divided without gaps, from the process's beginning on."""

from __future__ import annotations

import time

import psutil
import pytest

from server.telemetry.start import Start


def test_the_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("server.telemetry.start.time.monotonic", lambda: now)
    start = Start()
    age = time.time() - psutil.Process().create_time()
    for part, seconds in {"import": 2.0, "load": 3.0, "warm": 4.0}.items():
        now += seconds
        start.passed(part)
    parts = start.ready()
    assert list(parts) == ["import", "load", "warm", "ready"]
    assert parts["import"] == pytest.approx(age + 2, abs=1)
    assert (parts["load"], parts["warm"]) == (3.0, 4.0)
    assert parts["ready"] == pytest.approx(parts["import"] + 7.0)
