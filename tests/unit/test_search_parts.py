"""Features, ledger and settings of the search."""

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from registry.errors import InvalidInput, NotFound
from search_jobs.config import JobConfig, read_prompts
from search_jobs.features import Clip, clip_score, frechet_distance
from search_jobs.ledger import Ledger
from search_jobs.objective import Measure, Sample

PATHS = {"model": "m", "prompts": "p", "features": "f"}


def test_frechet_distance_is_the_textbook_formula_where_that_one_is_stable() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 6)), rng.normal(size=(300, 6)) * 1.7 + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    textbook = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(textbook, rel=1e-8)


def test_frechet_distance_of_a_shift_is_its_square_even_with_fewer_samples_than_dimensions() -> None:
    a = np.random.default_rng(1).normal(size=(16, 128))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(128 * 0.25, rel=1e-9)


def test_clip_score_of_parallel_features_is_100_and_of_opposite_ones_minus_100() -> None:
    a = np.random.default_rng(2).normal(size=(5, 7))
    assert clip_score(a, 3 * a) == pytest.approx(100)
    assert clip_score(a, -a) == pytest.approx(-100)


def test_a_folder_without_a_clip_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="features"):
        Clip(tmp_path)


def measure(loss: float) -> Measure:
    return Measure(cost=0.1, macs=10, loss=loss, rfid=0.5, psnr=30.0, clip_score=70.0, images=4)


def test_the_ledger_keeps_what_was_added(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add("search/a", measure(1.0))
    ledger.add("search/b", measure(2.0))
    again = Ledger(tmp_path / "ledger.jsonl")
    assert len(again) == 2
    assert again.get("search/b") == measure(2.0)
    assert again.get("held-out/b") is None


def test_a_line_cut_short_by_a_kill_is_dropped_and_only_that(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add("search/a", measure(1.0))
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut].rstrip("\n"))
        ledger = Ledger(path)
        assert len(ledger) == 1
        ledger.add("search/b", measure(2.0))
        assert len(Ledger(path)) == 2
        path.write_text(whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [("teacher_steps", 1), ("guidance", 0.5), ("images", 1), ("batch", 0), ("seed", -1), ("max_segments", 2)],
)
def test_a_setting_out_of_its_limits_is_named(field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        JobConfig.parse({**PATHS, field: value})
    assert caught.value.param == field


def test_a_tier_ceiling_out_of_its_limits_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"tiers\.fast"):
        JobConfig.parse({**PATHS, "tiers": {"fast": 1.5}})


def test_prompts_come_from_a_file_with_at_least_two(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    with pytest.raises(InvalidInput, match="prompts"):
        read_prompts(file)
    file.write_text("only one\n\n")
    with pytest.raises(InvalidInput, match="at least 2"):
        read_prompts(file)
    file.write_text("a cat \n\n b\n")
    assert read_prompts(file) == ["a cat", "b"]


def test_samples_drawn_with_other_seeds_share_no_noise() -> None:
    first, second = Sample.draw(["a", "b"], 50, 1), Sample.draw(["c"], 50, 2)
    assert not set(first.seeds) & set(second.seeds)
    assert set(first.prompts) == {"a", "b"}
