"""A whole search on every family of models, small and with random weights; and the guide to searching on your own model."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import model_folders
import pytest
import torch
from places import ROOT
from rich.console import Console

from engine.fresh_noise import stacked
from engine.loading import load
from engine.prompts import prompt_kind
from engine.sampler import generate
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from search_jobs.compare import compare, table
from search_jobs.config import WORST, JobConfig
from search_jobs.job import Job
from search_jobs.report import read, write
from search_jobs.rival import Rival, rivals

CLIP = ROOT / "models" / "emoji64" / "clip"
CEILING = 0.6
TEXTS = ["red heart", "cat face", "tomato", "sunflower"]


class Family(NamedTuple):
    """How to build one, and what its search is told: prompts, None if it is unconditional, guidance, and the teacher's steps.

    rows: of an image in a UNet call.
    """

    build: Callable[[Path, Mapping[str, Any]], Path]
    prompts: list[str] | None
    guidance: float
    rows: int
    steps: int = 8


def karras(folder: Path, unet: Mapping[str, Any]) -> Path:
    """Stable Diffusion XL as many folders have it: on Karras' levels, which leave no choice of timesteps."""
    model_folders.sdxl(folder, unet)
    model_folders.change(folder / "scheduler" / "scheduler_config.json", use_karras_sigmas=True)
    return folder


FAMILIES = {
    "stable-diffusion": Family(model_folders.sd, TEXTS, 3.0, rows=2),
    "stable-diffusion-xl": Family(karras, TEXTS, 3.0, rows=2),
    "class-conditional": Family(model_folders.classes, ["0", "1", "cat", "4"], 1.5, rows=2),
    "unconditional pixels": Family(lambda folder, _: model_folders.ddpm(folder), None, 1.0, rows=1),
    "labels": Family(lambda folder, _: model_folders.labels(folder), None, 1.0, rows=1),
    "latent consistency": Family(model_folders.lcm, TEXTS, 8.5, rows=1),
    "turbo": Family(model_folders.turbo, TEXTS, 1.0, rows=1, steps=4),
}


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


class Searched(NamedTuple):
    """A search of seconds that is over, the folder in which its model and its run are, and its job, which holds the latter."""

    report: dict[str, Any]
    place: Path
    job: Job


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Callable[[str], Searched]:
    """Of each family one search."""
    torch.set_num_threads(1)

    @cache
    def run(name: str) -> Searched:
        family, place = FAMILIES[name], tmp_path_factory.mktemp("family")
        prompts = place / "prompts.txt"
        prompts.write_text("\n".join(family.prompts or []))
        config = JobConfig.parse(
            {
                "model": str(family.build(place / "model", tiny_config)), "name": name.replace(" ", "-"),
                "prompts": str(prompts) if family.prompts else "",
                "features": str(CLIP),
                "guidance": family.guidance,
                "teacher_steps": family.steps, "scales": (),
                "screen": 2, "images": 2, "select": 2, "finals": 2, "heldout": 2, "generations": 1, "population": 3,
                "tiers": {"fast": CEILING},
                "budgets": (),
            }
        )  # fmt: skip
        job = Job(config, place / "run", Silent())
        return Searched(job.run(), place, job)

    return run


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("name", FAMILIES)
def test_a_search_ends_with_schedules_that_run(name: str, searched: Callable[[str], Searched]) -> None:
    family, (report, place, _) = FAMILIES[name], searched(name)
    assert json.loads((place / "run" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert all(math.isfinite(number) for number in numbers(report))
    assert all(entry["loss"] < WORST for entry in report["evaluated"]), "the loss of images that are not finite"

    model, tier = load(place / "model", name=name.replace(" ", "-")), report["tiers"]["fast"]
    schedule = Schedule.parse(json.dumps(tier["schedule"]).encode())
    assert schedule.digest == tier["digest"]
    program, held = model.compile(schedule), tier["held-out"]
    assert held["cost"] <= CEILING
    assert held["macs"] == model.macs.of_program(program, family.rows)
    assert tier["schedule"]["cost"]["rows"] == model.rows(family.guidance) == family.rows
    assert prompt_kind(model.prompts) != "none" or held["clip_score"] is None
    assert not model.few_steps or schedule.solver.name == model.teacher_solver, "a distilled model has its own solver"

    prompt = [model.prompts.sample]
    unwanted = model.negative([""]) if family.rows == 2 else None
    fresh, condition = stacked([model.noises(0)]), model.encode(prompt, family.guidance)
    latents = generate(model.network, program, fresh(0), condition, unwanted, family.guidance, fresh)
    images = model.decode(latents)
    assert images.shape == (1, 3, *model.image_size)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", ["latent consistency", "turbo"])
def test_a_distilled_model_is_known_searched_at_its_own_and_followed_to_its_noise(
    name: str, searched: Callable[[str], Searched]
) -> None:
    report, _, job = searched(name)
    assert report["teacher"]["schedule"]["solver"]["name"] == {"latent consistency": "lcm", "turbo": "euler-ancestral"}[name]
    entries = report["budgets"] + report["by_hand"]
    assert {Schedule.model_validate(entry["schedule"]).solver.name for entry in report["budgets"]} <= {"lcm", "euler-ancestral"}
    assert any(entry["steps"]["partial"] for entry in entries), "the few steps leave room for partial ones"
    held_out, fitted = job.evaluator.objective("held-out"), job.evaluator.objective("search")
    model = job.evaluator.model
    itself = held_out.evaluate(held_out.teacher.schedule).measurement
    assert itself.psnr == pytest.approx(100), "a schedule lands with the teacher's own noise"
    corrected = fitted.evaluate(fitted.teacher.schedule, fitting=True)
    for correction in corrected.schedule.corrections or ():
        numbers = (correction.guidance - 1, correction.latent, correction.output, correction.before)
        assert max(map(abs, numbers)) < 1e-3, "there is nothing to correct in the teacher"
    half = Schedule(
        model=model.ref, solver=model.solver(model.teacher_solver, 4), segments=(Segment(partial=(1,), branch=1),) * 2
    )
    plain, corrected = fitted.evaluate(half), fitted.evaluate(half, fitting=True)
    assert corrected.measurement.psnr > plain.measurement.psnr, "corrections are fitted to where the teacher lands"


@pytest.mark.parametrize("name", ["unconditional pixels", "class-conditional"])
def test_corrections_are_fitted_with_and_without_guidance(name: str, searched: Callable[[str], Searched]) -> None:
    """The pixel model clips x₀ and has no guidance, so its guidance keeps its factor; of both something is corrected."""
    lines = (searched(name).place / "run" / "ledger.jsonl").read_text().splitlines()
    fitted = [entry["schedule"] for entry in map(json.loads, lines) if entry["task"].startswith("screen/fitted")]
    corrections = [one for schedule in fitted for one in schedule["corrections"]]
    assert any(one["output"] or one["latent"] for one in corrections)
    assert all(one["guidance"] == 1 for one in corrections) == (name == "unconditional pixels")


class Spoken(Silent):
    """Notes what is begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def begin(self, name: str, images: int) -> None:
        self.begun.append(name)


def test_another_model_stands_in_the_comparison(
    searched: Callable[[str], Searched], tmp_path: Path, tiny_config: Mapping[str, Any]
) -> None:
    """The teacher itself is its own equal; a student of few steps costs what its MACs say; what was measured is kept."""
    _, place, job = searched("latent consistency")
    config, progress = job.config, Spoken()
    job.progress = progress
    (itself,) = rivals(config, [place / "model"], [8], [])
    assert (itself.steps, itself.guidance) == (8, 8.5)
    students = [itself, *rivals(config, [place / "model"], [], [2.0])]
    assert students[1].steps == 4, "what a distilled model was taught"
    student = model_folders.sd(tmp_path / "student", tiny_config)
    students += [*rivals(config, [student], [3], [1.0]), *rivals(config, [place / "model"], [6], [2.0])]

    def measured() -> list[dict[str, Any]]:
        return compare(job, [CEILING], rivals=students)["rivals"]

    same, fewer, other, dearer = measured()
    model, stranger = load(place / "model"), load(student)
    assert (same["psnr"], same["cost"]) == (pytest.approx(100), 1)
    assert same["rfid"] == pytest.approx(0, abs=1e-6)
    assert (fewer["cost"], fewer["macs"]) == (0.5, 4 * model.macs.full.macs)
    assert other["macs"] == 3 * stranger.macs.full.macs
    assert other["cost"] == pytest.approx(other["macs"] / (8 * model.macs.full.macs))
    assert min(fewer["rfid"], other["rfid"]) > 0
    assert (other["name"], other["solver"], other["images"]) == ("student", "ddim", config.heldout)
    cheaper = json.loads((place / "run" / "compare.json").read_bytes())["budgets"][0]["searched"]
    paired = dearer["searched_against_this"]["rfid"]
    assert paired["value"] == pytest.approx(cheaper["rfid"] / dearer["rfid"])
    assert paired["low"] <= paired["value"] <= paired["high"]
    assert "searched_against_this" not in fewer, "no searched schedule is as cheap"

    assert sum(name.startswith("rival") for name in progress.begun) == 4
    assert measured() == [same, fewer, other, dearer]
    assert sum(name.startswith("rival") for name in progress.begun) == 4, "a second comparison makes no images"

    page = write(read(place / "run"))[0]
    assert "student, 3 steps ddim" in page.read_text()
    console = Console(width=160, record=True, file=StringIO())
    console.print(table(read(place / "run").compared))
    lines = console.export_text().splitlines()
    assert any("rival" in line and "4 steps lcm, guidance 2" in line and "0.500" in line for line in lines)


def test_a_rival_is_drawn_at_the_size_that_the_search_decided_at(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    model, prompts = model_folders.sd(tmp_path / "model", tiny_config), tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    config = JobConfig.parse(
        {
            "model": str(model), "prompts": str(prompts), "features": str(CLIP), "guidance": 1.0, "teacher_steps": 4,
            "heldout": 2, "sizes": ("32x16",), "tiers": {"fast": CEILING}, "budgets": (),
        }
    )  # fmt: skip
    _, figures = Rival(model, 4, 1.0).measured(Job(config, tmp_path / "run", Silent()))
    assert (figures.psnr, figures.cost) == (100, 1), "the model itself"


def test_a_rival_that_cannot_be_compared_is_refused_by_name(searched: Callable[[str], Searched], tmp_path: Path) -> None:
    _, place, job = searched("latent consistency")
    config = job.config
    options: dict[str, tuple[list[Path], list[int], list[float]]] = {
        "rival": ([tmp_path / "nothing"], [], []),
        "rival_steps": ([place / "model"], [0], []),
        "rival_guidance": ([place / "model"], [], [31.0]),
    }
    for param, (folders, steps, scales) in options.items():
        with pytest.raises(InvalidInput) as caught:
            rivals(config, folders, steps, scales)
        assert caught.value.param == param
    with pytest.raises(InvalidInput, match="one, or one for each of the 1 rivals; got 2"):
        rivals(config, [place / "model"], [4, 8], [])
    with pytest.raises(InvalidInput, match="there is none"):
        rivals(config, [], [4], [])
    for build, why in (
        (model_folders.ddpm(tmp_path / "pixels"), r"makes images of 8×8 pixels, and the run's model makes images of 16×16"),
        (model_folders.ldm(tmp_path / "ldm"), r"begins with noise of 3×8×8, and the run's model begins with noise of 4×8×8"),
    ):
        with pytest.raises(InvalidInput, match=why) as caught:
            compare(job, [CEILING], rivals=rivals(config, [build], [2], [1.0]))
        assert caught.value.param == "rival"


def test_the_guide_says_what_its_own_estimate_prints(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "search.md").read_text()
    (script,) = re.findall(r"^```python\n(.+?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "plan.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "plan.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for line in done.stdout.splitlines():
        assert line in guide.splitlines(), line
