"""What a search gains by more images: measured on noise of its own, resumed without making anything twice."""

import gc
from pathlib import Path

import model_folders
import pytest
import torch
from places import ROOT
from schedule_strategies import schedule

from benchmarks.search_progress import draw, lines, measured, summary
from search_jobs.config import JobConfig
from search_jobs.job import Job
from search_jobs.measurement import Measurement

COUNT = 3  # images of fresh noise


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


def job(place: Path) -> Job:
    config = JobConfig(
        model=str(place / "model"), features=str(ROOT / "models" / "emoji64" / "clip"), guidance=1.0, teacher_steps=6,
        screen=2, images=2, select=2, population=2, tiers={"fast": 0.4}, budgets=(),
    )  # fmt: skip
    return Job(config, place / "seed-0", Silent())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("progress")
    model_folders.ddpm(folder / "model")
    return folder


def test_a_longer_search_passes_through_the_lines_of_a_shorter_one_and_makes_only_what_is_new(place: Path) -> None:
    one = job(place)
    short = lines(one, [30, 50])
    made = [images for images, _ in short]
    assert made == sorted(made)
    assert made[1] >= 30
    assert len(one.ledger) * 2 == made[-1], "each image counts once, those set by hand too"
    known = (one.folder / "ledger.jsonl").read_text()
    longer = lines(one, [30, 50, made[-1] + 1])
    assert longer[:3] == short
    assert (one.folder / "ledger.jsonl").read_text().startswith(known)

    schedules = list({schedule.digest: schedule for _, by_budget in longer for schedule in by_budget.values()}.values())
    figures = measured(one, schedules, COUNT, place)
    assert {measurement.images for measurement in figures.values()} == {COUNT}
    before = (place / "fresh.jsonl").read_text()
    del one
    gc.collect()  # a job holds its folder
    assert measured(job(place), schedules, COUNT, place) == figures
    assert (place / "fresh.jsonl").read_text() == before, "nothing is measured twice"
    draw(summary([longer], figures, COUNT), place / "progress.png")
    assert (place / "progress.png").read_bytes().startswith(b"\x89PNG")


def figure(cost: float, rfid: float) -> Measurement:
    return Measurement(cost, 1, 1.0, rfid, 30.0, None, COUNT)


def test_volumes_are_held_to_the_end_of_their_own_search() -> None:
    a, b = schedule(3), schedule(4)
    by_hand, early, late = {0.2: a}, {0.2: a}, {0.2: b}
    figures = {a.digest: figure(0.2, 0.8), b.digest: figure(0.2, 0.2)}
    document = summary([[(10, by_hand), (20, early), (40, late)]], figures, COUNT)
    first, second, last = document["searches"][0]
    assert document["corner"] == (1.0, 0.8)
    assert first["hypervolume"] == second["hypervolume"] == 0
    assert last["hypervolume"] == pytest.approx(1.609438 * 1.386294)  # ln(1 / 0.2) · ln(0.8 / 0.2)
    assert (last["share"], last["rfid_over_last"]) == (1, 1)
    assert second["rfid_over_last"] == pytest.approx(4)
