"""The command line of the search: what is refused in one line before anything is loaded, and what `evaluate` prints."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import model_folders
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from engine.image_size import ImageSize
from engine.model import Model
from evaluation import extractor
from registry.errors import InvalidInput
from registry.schedule import Schedule, teacher
from search_jobs.__main__ import app
from search_jobs.config import BUDGETS, TIERS, JobConfig, read_prompts
from search_jobs.distilled import TIERS as FEW_STEP_TIERS
from search_jobs.objective import Objective
from search_jobs.stages import fresh, halves

MODEL = "models/emoji64"
PROMPTS = "models/emoji64/prompts.txt"


def call(*line: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in line])


def said(result: Result) -> str:
    """Its words, whatever box typer draws around them."""
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def schedule(model: Model, tmp_path: Path) -> Path:
    file = tmp_path / "schedule.json"
    file.write_bytes(teacher(model.ref, model.solver("ddim", 2)).document())
    return file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", 0), "--images"),
        (("--images", 1), "--images"),
        (("--batch", 0), "--batch"),
        (("--seed", -1), "--seed"),
        (("--teacher-steps", 3), "--teacher-steps"),
        (("--teacher-steps", 901), "--teacher-steps"),
        (("--guidance", -0.5), "guidance: must be from 0 to 30, got -0.5"),
        (("--guidance", 30.5), "guidance: must be from 0 to 30, got 30.5"),
        (("--guidance", "nan"), "guidance: must be from 0 to 30, got nan"),
    ],
)
def test_evaluate_refuses_what_is_out_of_its_limits(schedule: Path, options: Sequence[object], words: str) -> None:
    result = call("evaluate", schedule, "--model", MODEL, "--prompts", PROMPTS, *options)
    assert result.exit_code in (1, 2)
    assert words in said(result)
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_evaluate_says_that_a_file_is_not_there(tmp_path: Path) -> None:
    result = call("evaluate", tmp_path / "nothing.json", "--model", MODEL)
    assert result.exit_code == 2
    assert "does not exist" in said(result)


def test_run_refuses_a_file_as_its_folder_and_a_negative_guidance(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("")
    result = call("run", "--model", MODEL, "--prompts", PROMPTS, "--out", file)
    assert result.exit_code == 2
    assert "is a file" in said(result)
    result = call("run", "--model", MODEL, "--prompts", PROMPTS, "--out", tmp_path / "other", "--guidance", -1)
    assert result.exit_code == 1
    assert "guidance: must be from 0 to 30, got -1" in said(result)


@pytest.mark.parametrize("command", ["report", "publish", "compare"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"null", b"[]", b"{}", b"[" * 100_000, b'{"config": 1, "model": 2}'])
def test_a_damaged_report_is_one_line(tmp_path: Path, command: str, data: bytes) -> None:
    (tmp_path / "report.json").write_bytes(data)
    result = call(command, tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
    assert str(tmp_path) in said(result)


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("emoji64", (), {"teacher_steps": 50, "guidance": 3.0, "tiers": TIERS, "budgets": BUDGETS}),
        ("sd-turbo", (), {"teacher_steps": 4, "guidance": 1.0, "tiers": FEW_STEP_TIERS, "budgets": ()}),
        (
            "lightning-8step",
            ("--tier", "fast=0.3"),
            {"teacher_steps": 8, "guidance": 1.0, "tiers": {"fast": 0.3}, "budgets": ()},
        ),
        ("turbo", ("--guidance", 2, "--teacher-steps", 6), {"teacher_steps": 6, "guidance": 2.0, "tiers": FEW_STEP_TIERS}),
    ],
)
def test_run_asks_of_a_distilled_model_what_it_was_taught_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: Sequence[object], settings: dict[str, object]
) -> None:
    folder, asked = tmp_path / name, list[JobConfig]()
    shutil.copytree(MODEL, folder)
    if name != "emoji64":
        model_folders.change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="trailing")

    def job(config: JobConfig, *_: object) -> None:
        asked.append(config)
        raise InvalidInput("asked", param="out")

    monkeypatch.setattr("search_jobs.job.Job", job)
    result = call("run", "--model", folder, "--prompts", PROMPTS, "--out", tmp_path / "run", *options)
    assert "out: asked" in said(result)
    assert {field: getattr(asked[0], field) for field in settings} == settings


def test_run_refuses_a_model_of_so_few_steps_that_nothing_can_be_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "lightning-2steps"
    shutil.copytree(MODEL, folder)
    model_folders.change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="trailing")
    result = call("run", "--model", folder, "--prompts", PROMPTS, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "model: lightning-2steps was distilled to 2 steps without guidance: there is nothing to leave out" in said(result)


def test_run_refuses_what_no_schedule_reaches_before_it_begins(tmp_path: Path) -> None:
    result = call("run", "--model", MODEL, "--prompts", PROMPTS, "--out", tmp_path / "run", "--tier", "fast=0.01")
    assert result.exit_code == 1
    assert "tiers.fast: nothing is as cheap as 0.01: one of the teacher's 50 steps costs 0.02" in said(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [(("--guidance", 1), "no guidance"), (("--no-correct",), "no corrections"), (("--paper",), "no corrections")],
)
def test_run_refuses_scales_at_which_nothing_would_be_fitted(tmp_path: Path, options: Sequence[object], why: str) -> None:
    line = ("run", "--model", MODEL, "--prompts", PROMPTS, "--out", tmp_path / "run", "--scale", 5)
    result = call(*line, *options)
    assert result.exit_code == 1
    assert f"scale: there is nothing to fit at other guidance scales: this search has {why}" in said(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_name_that_is_none_is_refused_with_the_limit_before_it_begins(
    schedule: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.loading.meta_network", None)
    first = ["--out", tmp_path / "run"] if command == "run" else [schedule]
    result = call(command, *first, "--model", MODEL, "--prompts", PROMPTS, "--name", "My model")
    assert result.exit_code == 1
    assert "name: 'My model' cannot name a model; give 1 to 64 of a-z, 0-9, '.', '_' and '-'" in said(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "held_out"), [([], ["noise", "prompts"]), (["--all-prompts", "--size", "64x32"], ["noise"])])
def test_evaluate_measures_on_what_searches_hold_out_and_says_what(
    model: Model, schedule: Path, tmp_path: Path, flags: list[str], held_out: list[str]
) -> None:
    torch.set_num_threads(1)
    file = tmp_path / "prompts.txt"
    file.write_text("red heart\ncat face\ntomato\n" + "sunflower " * 20)
    line = ("--model", MODEL, "--prompts", file, "--images", 2, "--teacher-steps", 4, "--guidance", 0, "--seed", 3)
    result = call("evaluate", schedule, *line, *flags)  # guidance 0 is none, as 1 is
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["held_out"], figures["size"]) == (held_out, "64x32" if flags else "64x64")
    assert figures["prompts_cut"] == 1
    assert "1 of 4 prompts are longer than the 16 tokens that the model reads" in said(result)

    prompts = read_prompts(file) if flags else halves(read_prompts(file))[1]
    size = ImageSize(32, 64) if flags else None
    oracle = Objective(model, extractor(f"{MODEL}/clip"), fresh(prompts, 2, 3), teacher_steps=4, guidance=1, size=size)
    measure = oracle.evaluate(Schedule.parse(schedule.read_bytes())).measurement
    assert {name: figures[name] for name in ("rfid", "psnr")} == {"rfid": measure.rfid, "psnr": measure.psnr}
