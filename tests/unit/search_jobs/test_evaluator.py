"""A search that goes on calls its model as its first measurements do, whatever a new start would call it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from places import ROOT

from engine.folder import Folder
from registry.schedule import ModelRef, Schedule, Segment, Solver
from search_jobs.config import JobConfig
from search_jobs.evaluator import LEDGER, Evaluator

EMOJI = ROOT / "models" / "emoji64"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model with a file that is not read, so that its fingerprint was another one."""
    copied = shutil.copytree(EMOJI, tmp_path / "Mein Modell", ignore=shutil.ignore_patterns("*.png"))
    (copied / "unet" / ".DS_Store").write_bytes(b"x")
    return copied


def measured(run: Path, ref: ModelRef) -> None:
    run.mkdir()
    solver = Solver(name="ddim", teacher_steps=10, spacing="trailing")
    schedule = Schedule(model=ref, solver=solver, segments=(Segment(),))
    (run / LEDGER).write_text(json.dumps({"schedule": schedule.model_dump(mode="json", exclude_none=True)}) + "\n")


def opened(model: Path, run: Path, name: str | None = None) -> ModelRef:
    torch.set_num_threads(1)
    clip, prompts = str(EMOJI / "clip"), str(EMOJI / "prompts.txt")
    config = JobConfig(model=str(model), features=clip, prompts=prompts, name=name, guidance=3)
    return Evaluator.open(config, run).model.ref


def test_it_goes_on_under_the_name_and_the_fingerprint_that_it_began_with(folder: Path, tmp_path: Path) -> None:
    began = ModelRef(name="mine", family="unet2d-condition", fingerprint=Folder(folder).earlier_fingerprint())
    measured(tmp_path / "run", began)
    assert opened(folder, tmp_path / "run") == began
    now = opened(folder, tmp_path / "new")
    assert (now.name, now.fingerprint) == ("mein-modell", Folder(folder).fingerprint())
    assert now.fingerprint != began.fingerprint
    assert opened(folder, tmp_path / "new", "given").name == "given"


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"schedule": {"model": 1}}'])
def test_a_ledger_of_other_weights_or_of_nothing_says_nothing(folder: Path, tmp_path: Path, line: str) -> None:
    measured(tmp_path / "run", ModelRef(name="mine", family="unet2d-condition", fingerprint=f"sha256:{'0' * 64}"))
    if line != "{}":
        (tmp_path / "run" / LEDGER).write_text(line)
    assert opened(folder, tmp_path / "run").name == "mein-modell"
