"""Features, ledger and settings of the search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from schedule_strategies import schedule
from scipy.linalg import sqrtm
from server_model import FakeText

from engine.model import Model
from engine.prompts import ClassPrompts, NoPrompts
from evaluation import Clip, clip_score, frechet_distance
from registry.corrections import Correction
from registry.errors import InvalidInput, NotFound
from registry.schedule import Schedule
from search_jobs.config import BUDGETS, JobConfig, read_prompts
from search_jobs.distilled import TIERS as FEW_STEP_TIERS
from search_jobs.distilled import refuse_distilled, solvers, usual_budgets
from search_jobs.evaluator import prompts_of
from search_jobs.executor import EvaluationTask
from search_jobs.ledger import Ledger
from search_jobs.measurement import Measurement
from search_jobs.objective import Evaluation, Sample
from search_jobs.schedule_walk import MacsSpent
from search_jobs.stages import stages

PATHS = {"model": "m", "prompts": "p", "features": "f", "guidance": 3.0}


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


def evaluation(loss: float, one: Schedule) -> Evaluation:
    intervals = {"rfid": (0.1, 0.9)}
    measurement = Measurement(0.1, 10, loss, rfid=0.5, psnr=30.0, clip_score=None, images=4, intervals=intervals)
    corrected = one.model_copy(update={"corrections": (Correction(guidance=1.25),) * one.computed})
    return Evaluation(corrected, measurement, MacsSpent(7, 3))


def test_the_ledger_keeps_what_was_added(tmp_path: Path) -> None:
    ledger, first, second = Ledger(tmp_path / "ledger.jsonl"), schedule(5), schedule(6)
    ledger.add(EvaluationTask("search", first, fitting=True), evaluation(1.0, first))
    ledger.add(EvaluationTask("search", second, fitting=True), evaluation(2.0, second))
    again = Ledger(tmp_path / "ledger.jsonl")
    assert len(again) == 2
    assert again.get(EvaluationTask("search", second, fitting=True)) == evaluation(2.0, second)
    assert again.get(EvaluationTask("search", second, fitting=False)) is None
    assert again.get(EvaluationTask("held-out", second, fitting=True)) is None
    assert [stage for stage, _ in again] == ["search", "search"]


def test_a_line_cut_short_by_a_kill_is_dropped_and_only_that(tmp_path: Path) -> None:
    path, first = tmp_path / "ledger.jsonl", schedule(5)
    Ledger(path).add(EvaluationTask("search", first, fitting=True), evaluation(1.0, first))
    whole = path.read_text()
    for cut in range(1, len(whole), 7):
        path.write_text(whole + whole[:cut].rstrip("\n"))
        ledger = Ledger(path)
        assert len(ledger) == 1
        ledger.add(EvaluationTask("search", schedule(3), fitting=True), evaluation(2.0, schedule(3)))
        assert len(Ledger(path)) == 2
        path.write_text(whole)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "no JSON",
        "\udcff",
        "[" * 100_000,
        '{"task": "search/fitted/1", "schedule": {}, "measure": {"intervals": []}}',
    ],
)
def test_a_whole_line_that_is_no_measurement_is_named_and_left_alone(line: str, tmp_path: Path) -> None:
    path, first = tmp_path / "ledger.jsonl", schedule(5)
    Ledger(path).add(EvaluationTask("search", first, fitting=True), evaluation(1.0, first))
    path.write_bytes(before := path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(InvalidInput, match=r"ledger\.jsonl, line 2: no measurement of this version"):
        Ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher_steps", 1),
        ("guidance", 0.5),
        ("images", 1),
        ("batch", 0),
        ("seed", -1),
        ("max_segments", 2),
        ("screen", 13),
        ("share", 0.0),
        ("offsets", "none"),
        ("share_mib", -1),
    ],
)
def test_a_setting_out_of_its_limits_is_named(field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        JobConfig.parse({**PATHS, field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("steps", "settings", "words"),
    [
        (1, {}, "model: emoji64 was distilled to 1 step without guidance: there is nothing to leave out among fewer than 4"),
        (4, {}, "teacher_steps: emoji64 was distilled to 4 steps without guidance; say 4, got 50"),
        (8, {"teacher_steps": 8}, "guidance: emoji64 was distilled to 8 steps without guidance; say 1, got 3"),
    ],
)
def test_a_search_imitates_a_distilled_model_as_it_was_taught_or_not_at_all(
    model: Model, steps: int, settings: dict[str, float], words: str
) -> None:
    distilled = replace(model, few_steps=steps)
    with pytest.raises(InvalidInput) as refused:
        refuse_distilled(distilled, JobConfig.parse({**PATHS, "tiers": {"best": 0.5}, "budgets": [], **settings}))
    assert refused.value.message.startswith(words)
    fitting = JobConfig.parse({**PATHS, "tiers": {"best": 0.5}, "budgets": [], "teacher_steps": 8, "guidance": 1})
    refuse_distilled(replace(model, few_steps=8), fitting)
    refuse_distilled(model, JobConfig.parse(PATHS))
    refuse_distilled(replace(model, few_steps=4, own_solver="lcm"), fitting)  # which was taught all numbers of steps


def test_a_search_of_a_distilled_model_has_its_own_solver_and_the_costs_that_its_steps_can_have(model: Model) -> None:
    assert solvers(model) == ("ddim", "dpmsolver++")
    assert solvers(replace(model, few_steps=4, own_solver="lcm")) == ("lcm",)
    assert usual_budgets(JobConfig.parse(PATHS)) == list(BUDGETS)
    few = JobConfig.parse({**PATHS, "teacher_steps": 4, "guidance": 1, "tiers": FEW_STEP_TIERS, "budgets": ()})
    assert usual_budgets(few) == [1 / 4, 3 / 8, 1 / 2, 3 / 4]


def test_a_tier_ceiling_out_of_its_limits_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"tiers\.fast"):
        JobConfig.parse({**PATHS, "tiers": {"fast": 1.5}})


def test_a_budget_out_of_its_limits_is_named_and_one_aim_there_must_be() -> None:
    with pytest.raises(InvalidInput, match=r"budgets\.1"):
        JobConfig.parse({**PATHS, "budgets": [0.5, 0.0]})
    with pytest.raises(InvalidInput, match="a tier or a budget"):
        JobConfig.parse({**PATHS, "tiers": {}, "budgets": []})


def test_prompts_come_from_a_file_with_at_least_two(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    with pytest.raises(InvalidInput, match="prompts"):
        read_prompts(file)
    file.write_text("only one\n\n")
    with pytest.raises(InvalidInput, match="at least 2"):
        read_prompts(file)
    file.write_text("a cat \n\n b\n")
    assert read_prompts(file) == ["a cat", "b"]


def test_without_a_file_all_classes_are_drawn_or_nothing_twice(tmp_path: Path) -> None:
    cats = ClassPrompts(3, torch.device("cpu"), null=2, names={"cat": 1})
    assert prompts_of(None, cats) == ["0", "cat"]
    assert prompts_of("", replace(cats, count=1)) == ["0", "0"], "to be split"
    assert prompts_of(None, NoPrompts()) == ["", ""]
    with pytest.raises(InvalidInput, match=r"^prompts: the model draws texts"):
        prompts_of(None, FakeText())
    (tmp_path / "prompts.txt").write_text("cat\n0\n")
    assert prompts_of(tmp_path / "prompts.txt", cats) == ["cat", "0"]


def test_samples_drawn_with_other_seeds_share_no_noise() -> None:
    first, second = Sample.draw(["a", "b"], 50, 1), Sample.draw(["c"], 50, 2)
    assert not set(first.seeds) & set(second.seeds)
    assert set(first.prompts) == {"a", "b"}


def test_stages_that_choose_and_stages_that_report_share_no_noise_and_held_out_no_prompt() -> None:
    given = stages(JobConfig.parse({**PATHS, "seed": 3}), [f"prompt {i}" for i in range(40)])
    assert given["screen"].sample == given["search"].sample.first(4)
    deciding = ["search", "select", "finals", "held-out"]
    seeds = [seed for name in deciding for seed in given[name].sample.seeds]
    assert len(seeds) == len(set(seeds))
    seen = {prompt for name in deciding[:3] for prompt in given[name].sample.prompts}
    assert not seen & set(given["held-out"].sample.prompts)


def test_the_first_size_decides_and_the_others_report_on_the_held_out_images() -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    given = stages(JobConfig.parse({**PATHS, "sizes": ["64x96", "32x64"]}), prompts)
    assert given["held-out at 32x64"].size == (64, 32)
    assert given["held-out at 32x64"].sample == given["held-out"].sample
    assert {stage.size for name, stage in given.items() if name != "held-out at 32x64"} == {(96, 64)}
    assert {stage.size for stage in stages(JobConfig.parse(PATHS), prompts).values()} == {None}


@pytest.mark.parametrize(("sizes", "param"), [(["64x96", "64"], "sizes.1"), (["64x96", "64x96"], "sizes")])
def test_sizes_that_are_none_or_said_twice_are_refused(sizes: list[str], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        JobConfig.parse({**PATHS, "sizes": sizes})
    assert caught.value.param == param


def test_other_guidance_scales_fit_where_the_search_fits_and_report_where_it_reports() -> None:
    config = JobConfig.parse({**PATHS, "guidance": 3, "scales": [1, 3, 7.5], "scaled": 5})
    given = stages(config, [f"prompt {i}" for i in range(40)])
    assert [name for name in given if " at " in name] == ["search at 1", "search at 7.5", "held-out at 1", "held-out at 7.5"]
    assert given["search at 7.5"].sample == given["search"].sample
    assert given["held-out at 7.5"].sample == given["held-out"].sample.first(5)
    assert {stage.guidance for name, stage in given.items() if " at " not in name} == {3.0}
    assert given["search at 1"].fitted
    assert not given["held-out at 1"].fitted
    for without in ({"guidance": 1}, {"correct": False}, {"scales": []}):
        assert not JobConfig.parse({**PATHS, **without}).other_scales
