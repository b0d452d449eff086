"""A search held against another one of the same model: small, with random weights."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import model_folders
import pytest
import torch
from places import ROOT

from registry.errors import InvalidInput
from search_jobs.compare import compare
from search_jobs.config import JobConfig, digest_of, read_prompts
from search_jobs.job import Job
from search_jobs.stages import stages

CLIP = ROOT / "models" / "emoji64" / "clip"
CEILING = 0.5


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


class Searched(NamedTuple):
    """A search that is over, its report, and the folder in which its model, its prompts and two other searches are."""

    job: Job
    report: dict[str, Any]
    place: Path


def search(place: Path, name: str, prompts: str, seed: int, **more: object) -> Searched:
    config = JobConfig.parse(
        {
            "model": str(place / "model"), "features": str(CLIP), "prompts": str(place / prompts),
            "prompts_digest": digest_of(place / prompts), "teacher_steps": 4, "guidance": 3.0, "correct": False, "seed": seed,
            "screen": 2, "images": 2, "select": 2, "finals": 2, "heldout": 4, "generations": 0,
            "tiers": {"fast": CEILING}, "budgets": (), **more,
        }
    )  # fmt: skip
    job = Job(config, place / name, Silent())
    return Searched(job, job.run(), place)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Searched:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("compared")
    model_folders.sd(place / "model", tiny_config)
    (place / "prompts.txt").write_text("red heart\ncat face\ntomato\nsunflower\n")
    (place / "others.txt").write_text("red heart\ncat face\ntomato\npenguin\n")
    search(place, "twin", "prompts.txt", seed=5)
    search(place, "stranger", "others.txt", seed=0)
    return search(place, "own", "prompts.txt", seed=0)


def test_a_twin_of_another_seed_is_measured_on_images_that_neither_was_fitted_on(own: Searched) -> None:
    ((entry,),) = compare(own.job, [CEILING], [own.place / "twin"])["twins"].values()
    assert entry["images"] == 4
    held = own.job.evaluator.stages["held-out"].sample
    prompts = read_prompts(own.job.config.prompts)
    for seed in (0, 5):
        for stage in stages(own.job.config.model_copy(update={"seed": seed}), prompts).values():
            assert stage.name == "held-out" or not set(stage.sample.prompts) & set(held.prompts)
            assert (stage.name, seed) == ("held-out", 0) or not set(stage.sample.seeds) & set(held.seeds)


def test_a_twin_on_other_prompts_is_refused(own: Searched) -> None:
    with pytest.raises(InvalidInput, match="stranger is a search on other prompts") as caught:
        compare(own.job, [CEILING], [own.place / "stranger"])
    assert caught.value.param == "twin"


@pytest.mark.parametrize(("setting", "theirs"), [("teacher_steps", 8), ("guidance", 7.5), ("sizes", ["16x32"])])
def test_a_twin_of_another_teacher_is_refused(own: Searched, tmp_path: Path, setting: str, theirs: object) -> None:
    """Whose costs and images are others."""
    report = json.loads((own.place / "twin" / "report.json").read_text())
    report["config"][setting] = theirs
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text(json.dumps(report))
    with pytest.raises(InvalidInput, match=f"other is a search with {setting}") as caught:
        compare(own.job, [CEILING], [tmp_path / "other"])
    assert caught.value.param == "twin"


def test_what_the_teacher_took_is_reported(own: Searched) -> None:
    spent = own.report["spent"]
    assert spent["teacher_images"] == 2 + 2 + 2 + 2 + 4
    assert spent["teacher_macs"] == spent["teacher_images"] * own.report["teacher"]["macs"]


def test_a_search_in_large_batches_finds_what_one_schedule_after_the_other_finds(own: Searched) -> None:
    together = search(own.place, "together", "prompts.txt", seed=0, together=100, batch=64).report
    assert together["front"] == own.report["front"]
    assert together["tiers"]["fast"]["digest"] == own.report["tiers"]["fast"]["digest"]
    for mine, theirs in zip(together["evaluated"], own.report["evaluated"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-5)
        assert mine | {"loss": 0} == theirs | {"loss": 0}
    planned = [sum(stage["macs"] + stage["macs_shared"] for stage in report["spent"]["stages"].values())
               for report in (together, own.report)]  # fmt: skip
    assert planned[0] == planned[1]
    assert together["spent"]["macs_per_front_point"] <= own.report["spent"]["macs_per_front_point"], "it shares as much"


def test_a_search_goes_on_with_other_batches_but_not_as_another_search(own: Searched) -> None:
    gc.collect()  # the job that made the folder holds it
    config, folder = JobConfig.model_validate_json((own.place / "twin" / "config.json").read_bytes()), own.place / "twin"
    lines = (folder / "ledger.jsonl").read_bytes()
    again = Job(config.model_copy(update={"batch": 2, "together": 3, "share_mib": 0}), folder, Silent()).run()
    assert (folder / "ledger.jsonl").read_bytes() == lines
    assert again["throughput"] == {}, "nothing was left to measure"
    gc.collect()
    with pytest.raises(InvalidInput, match=r"another configuration \(select\)"):
        Job(config.model_copy(update={"select": 3}), folder, Silent())


def test_baselines_are_chosen_by_the_images_that_decided_among_the_searched_ones(own: Searched) -> None:
    (budget,) = compare(own.job, [CEILING])["budgets"]
    finals = {
        evaluation.schedule.digest: evaluation.measurement.loss for stage, evaluation in own.job.ledger if stage == "finals"
    }
    families: dict[str, list[float]] = {}
    for baseline in own.job.baselines.every_setting(CEILING, own.job.config.teacher_steps):
        if baseline.schedule.digest in finals:
            families.setdefault(baseline.family, []).append(finals[baseline.schedule.digest])
    assert {family: finals[entry["digest"]] for family, entry in budget["baselines"].items()} == {
        family: min(losses) for family, losses in families.items()
    }
