"""A whole search on every family of models, small and with random weights; and the guide to searching on your own model."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import model_folders
import pytest
import torch
from places import ROOT

from engine.loading import load
from engine.sampler import generate
from registry.schedule import Schedule
from search_jobs.config import WORST, JobConfig
from search_jobs.job import Job

CLIP = ROOT / "models" / "emoji64" / "clip"
CEILING = 0.6


class Family(NamedTuple):
    """How to build one, and what its search is told: prompts, None if it is unconditional, and guidance."""

    build: Callable[[Path, Mapping[str, Any]], Path]
    prompts: list[str] | None
    guidance: float


FAMILIES = {
    "stable-diffusion": Family(model_folders.sd, ["red heart", "cat face", "tomato", "sunflower"], 3.0),
    "stable-diffusion-xl": Family(model_folders.sdxl, ["red heart", "cat face", "tomato", "sunflower"], 3.0),
    "class-conditional": Family(model_folders.classes, ["0", "1", "cat", "4"], 1.5),
    "unconditional pixels": Family(lambda folder, _: model_folders.ddpm(folder), None, 1.0),
    "labels": Family(lambda folder, _: model_folders.labels(folder), ["0", "1", "2", "4"], 1.0),
}


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


class Searched(NamedTuple):
    """A search of seconds that is over, and the folder in which its model and its run are."""

    report: dict[str, Any]
    place: Path


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
                "model": str(family.build(place / "model", tiny_config)),
                "prompts": str(prompts) if family.prompts else "",
                "features": str(CLIP),
                "guidance": family.guidance,
                "teacher_steps": 8, "scales": (),
                "screen": 2, "images": 2, "select": 2, "finals": 2, "heldout": 2, "generations": 1, "population": 3,
                "tiers": {"fast": CEILING},
                "budgets": (),
            }
        )  # fmt: skip
        return Searched(Job(config, place / "run", Silent()).run(), place)

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
    family, (report, place) = FAMILIES[name], searched(name)
    assert json.loads((place / "run" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert all(math.isfinite(number) for number in numbers(report))
    assert all(entry["loss"] < WORST for entry in report["evaluated"]), "the loss of images that are not finite"

    model, tier = load(place / "model"), report["tiers"]["fast"]
    schedule = Schedule.parse(json.dumps(tier["schedule"]).encode())
    assert schedule.digest == tier["digest"]
    program, held = model.compile(schedule), tier["held-out"]
    assert held["cost"] <= CEILING
    assert held["macs"] == model.macs.of_program(program, rows=2 if family.guidance > 1 else 1)
    assert family.prompts or held["clip_score"] is None

    prompt = [family.prompts[0] if family.prompts else ""]
    unwanted = model.negative([""]) if family.guidance > 1 else None
    latents = generate(model.network, program, model.noise(0)[None], model.encode(prompt), unwanted, family.guidance)
    images = model.decode(latents)
    assert images.shape == (1, 3, *model.image_size)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", ["unconditional pixels", "class-conditional"])
def test_corrections_are_fitted_with_and_without_guidance(name: str, searched: Callable[[str], Searched]) -> None:
    """The pixel model clips x₀ and has no guidance, so its guidance keeps its factor; of both something is corrected."""
    lines = (searched(name).place / "run" / "ledger.jsonl").read_text().splitlines()
    fitted = [entry["schedule"] for entry in map(json.loads, lines) if entry["task"].startswith("screen/fitted")]
    corrections = [one for schedule in fitted for one in schedule["corrections"]]
    assert any(one["output"] or one["latent"] for one in corrections)
    assert all(one["guidance"] == 1 for one in corrections) == (name == "unconditional pixels")


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
