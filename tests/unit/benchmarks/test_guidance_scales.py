"""What tiers are worth at other guidance scales: each way runs the corrections that it says, and nothing is measured twice."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from places import ROOT

from benchmarks.guidance_scales import HAND, NONE, ONE, OURS, main, tables
from registry.schedule import Schedule
from search_jobs.config import JobConfig, digest_of
from search_jobs.job import Job

IMAGES, FIT, BETWEEN, OWN = 3, 7.5, 5.0, 3.0


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    """The folder of a finished search at scale 3 with fits at 3 and 7.5, measured by the benchmark, too."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("scales")
    model_folders.sd(place / "model", tiny_config)
    prompts = place / "prompts.txt"
    prompts.write_text("red heart\ncat face\ntomato\nsunflower\n")
    config = JobConfig.parse(
        {
            "model": str(place / "model"), "features": str(ROOT / "models/emoji64/clip"), "prompts": str(prompts),
            "prompts_digest": digest_of(prompts), "teacher_steps": 4, "guidance": OWN, "scales": (FIT,), "scaled": 2,
            "screen": 2, "images": 2, "select": 2, "finals": 2, "heldout": 2, "generations": 0,
            "tiers": {"fast": 0.6}, "budgets": (),
        }
    )  # fmt: skip
    Job(config, place / "run", Silent()).run()
    measure(place / "run", FIT, OWN, BETWEEN)
    return place / "run"


def measure(run: Path, *scales: float) -> None:
    gc.collect()  # a job holds its folder
    main(run, list(scales), IMAGES)
    gc.collect()


def document(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "guidance" / "guidance.json").read_text())
    return found


def test_every_way_is_what_its_own_corrections_make_at_that_scale(run: Path) -> None:
    (tier,) = document(run)["tiers"]
    config = JobConfig.model_validate_json((run / "config.json").read_text())
    job = Job(config, run, Silent())
    report = json.loads((run / "report.json").read_text())
    ours = Schedule.model_validate(report["tiers"]["fast"]["schedule"])
    assert ours.scaled_corrections is not None
    low, high = (fitted.corrections for fitted in ours.scaled_corrections)
    between = tuple(one.towards(other, (BETWEEN - OWN) / (FIT - OWN)) for one, other in zip(low, high, strict=True))
    by_hand = [one.schedule for one in job.by_hand()[0.6]]
    assert [at["guidance"] for at in tier["scales"]] == [OWN, BETWEEN, FIT]
    for at, own in zip(tier["scales"], (low, between, high), strict=True):
        objective = job.evaluator.fresh(IMAGES, guidance=at["guidance"])
        for way, corrections in ((OURS, own), (ONE, low), (NONE, None)):
            plain = ours.model_copy(update={"scaled_corrections": None, "corrections": corrections})
            assert at[way]["rfid"] == pytest.approx(objective.evaluate(plain).measurement.rfid, rel=1e-6), way
        rivals = [one.measurement.rfid for one in objective.evaluate_all(by_hand)]
        assert at[HAND]["rfid"] >= min(rivals) * (1 - 1e-6), "it is one of them"
        assert at["ratio"][0] == pytest.approx(at[OURS]["rfid"] / at[HAND]["rfid"])
    assert tier["scales"][0][OURS] == tier["scales"][0][ONE], "at the search's own scale they are the same"
    assert tier["scales"][2][OURS] != tier["scales"][2][ONE]
    del job, objective


def test_the_same_command_measures_nothing_twice_and_a_further_scale_alone(run: Path) -> None:
    before, kept = (run / "guidance" / "fresh.jsonl").read_text(), document(run)
    measure(run, OWN, BETWEEN, FIT)
    assert ((run / "guidance" / "fresh.jsonl").read_text(), document(run)) == (before, kept)
    measure(run, OWN, 1.0)
    more = (run / "guidance" / "fresh.jsonl").read_text()
    assert more.startswith(before)
    assert all('"guidance 1, 3 images/' in line for line in more[len(before) :].splitlines())
    assert (run / "guidance" / "guidance.png").read_bytes().startswith(b"\x89PNG")


def test_tables_say_which_scales_nothing_was_fitted_at(run: Path) -> None:
    found = document(run)
    scales = [at["guidance"] for at in found["tiers"][0]["scales"]]
    assert "(between)" not in tables({**found, "fitted": scales})[1]
    head = tables({**found, "fitted": [OWN]})[1]
    assert "| 3 |" in head
    assert head.count("(between)") == len(scales) - 1
