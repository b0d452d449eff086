"""A run folder belongs to one job and, while it works, to one process; what does not fit it is one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from registry.errors import InvalidInput
from search_jobs.__main__ import app
from search_jobs.lock import lock

MODEL = (
    "--model",
    "models/emoji64",
    "--prompts",
    "models/emoji64/prompts.txt",
    "--guidance",
    "1",
    "--teacher-steps",
    "10",
    "--tier",
    "fast=0.7",
    "--budget",
    "0",
    "--share-mib",
    "0",
)
IMAGES = ("--screen", "2", "--images", "2", "--select", "2", "--finals", "2", "--heldout", "2", "--generations", "1000")


def arguments(folder: Path, *more: str) -> list[str]:
    return ["run", *MODEL, *IMAGES, "--out", str(folder), *more]


def error(folder: Path, *more: str) -> str:
    """The one line that the command ends with."""
    done = CliRunner().invoke(app, arguments(folder, *more))
    assert done.exit_code == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line.removeprefix("error: ")


def test_a_second_process_is_kept_out_until_the_first_one_ends_even_by_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "search_jobs", *arguments(folder)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "ledger.jsonl").is_file():
            assert first.poll() is None, "it ended before a second one could come"
            time.sleep(0.05)
        assert error(folder) == f"out: process {first.pid} is at work in {folder}"
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert "another configuration (seed)" in error(folder, "--seed", "9"), "it came as far as the configuration"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: {**config, "rungs": 3}, "rungs: Extra inputs are not permitted"),
        (lambda config: {name: value for name, value in config.items() if name != "model"}, "model: Field required"),
        (lambda config: [config], "Input should be an object"),
    ],
    ids=["unknown field", "missing field", "no object"],
)
def test_a_configuration_of_another_version_is_named_with_its_field(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(change({"model": "m", "features": "f", "guidance": 1})))
    assert error(tmp_path) == f"out: {tmp_path / 'config.json'} is no configuration of this version: {said}"


def test_what_can_be_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(InvalidInput, match=f"out: {file} is a file, not a folder"):
        lock(file)
    with pytest.raises(InvalidInput, match=f"out: {file / 'run'} cannot be a run folder: Not a directory"):
        lock(file / "run")
    assert file.read_text() == "mine"
