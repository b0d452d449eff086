"""The command line of the engine's benchmarks; what it measures is for a quiet machine."""

from __future__ import annotations

import json

import pytest
from places import ROOT
from typer.testing import CliRunner

from benchmarks.engine.__main__ import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "section: there is no nonsense; there are steps"),
        (["steps", "--repeats", "0"], "repeats and threads: must be at least 1"),
    ],
)
def test_what_it_cannot_measure_is_said_in_one_line(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr


def test_a_wave_is_measured_beside_its_unet_call() -> None:
    done = CliRunner().invoke(app, ["overhead", "--repeats", "1", "--model", str(ROOT / "models" / "emoji64"), "--json"])
    assert done.exit_code == 0, done.output
    measurements = json.loads(done.stdout)["measurements"]
    assert {measurement["section"] for measurement in measurements} == {"overhead"}
    assert all(measurement["spread"]["median"] > 0 for measurement in measurements)
