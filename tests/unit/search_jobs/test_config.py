"""What a search is told: which settings are refused before anything runs, and which images its stages look at."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidInput
from search_jobs.config import MAX_SEED, JobConfig, digest_of, read_prompts
from search_jobs.stages import fresh, halves, stages

PATHS = {"model": "m", "prompts": "p", "features": "f", "guidance": 3.0}
PROMPTS = [f"prompt {i}" for i in range(40)]


@given(st.integers(0, MAX_SEED), st.integers(0, MAX_SEED))
def test_what_one_search_holds_out_no_search_of_any_seed_sees(seed: int, other: int) -> None:
    first, second = (stages(JobConfig.parse({**PATHS, "seed": one}), PROMPTS) for one in (seed, other))
    seen = {prompt for stage in second.values() if not stage.name.startswith("held-out") for prompt in stage.sample.prompts}
    assert not seen & set(first["held-out"].sample.prompts)


@given(st.integers(0, MAX_SEED))
def test_stages_that_decide_and_report_share_no_noise_but_screen_begins_search(seed: int) -> None:
    seeds = {name: stage.sample.seeds for name, stage in stages(JobConfig.parse({**PATHS, "seed": seed}), PROMPTS).items()}
    own = [set(seeds[name]) for name in ("search", "select", "finals", "held-out")]
    assert all(own)
    assert sum(map(len, own)) == len(set.union(*own))
    assert seeds["screen"] == seeds["search"][: len(seeds["screen"])] != []


def test_halves_are_disjoint_and_make_the_whole() -> None:
    seen, unseen = halves(PROMPTS)
    assert sorted(seen + unseen) == sorted(PROMPTS)
    assert len(seen) == len(unseen)


@given(st.integers(0, MAX_SEED), st.integers(0, MAX_SEED))
def test_noise_drawn_afresh_is_no_searchs(seed: int, of_a_search: int) -> None:
    given_stages = stages(JobConfig.parse({**PATHS, "seed": of_a_search, "heldout": 100}), PROMPTS)
    drawn = {one for stage in given_stages.values() for one in stage.sample.seeds}
    sample = fresh(PROMPTS, 100, seed)
    assert not drawn & set(sample.seeds)
    assert max(sample.seeds) < 2**63, "the engine's limit"


def test_a_prompt_that_is_there_twice_lies_in_one_half(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\nb\n a cat\nc\nb\nd\n")
    seen, unseen = halves(read_prompts(file))
    assert not set(seen) & set(unseen)
    assert read_prompts(file) == ["a cat", "b", "c", "d"]
    file.write_text("the same\nthe same\n")
    with pytest.raises(InvalidInput, match="at least 2 different prompts, got 1"):
        read_prompts(file)


def test_prompts_are_utf_8_with_or_without_its_mark(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein Bär\nein Mädchen\n".encode())
    assert read_prompts(file) == ["ein Bär", "ein Mädchen"]
    file.write_bytes("ein Bär\nein Mädchen\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"^prompts: .*prompts\.txt is not UTF-8 text"):
        read_prompts(file)


@pytest.mark.parametrize("aims", [{"tiers": {"fast": 0.05}, "budgets": []}, {"tiers": {"fast": 0.5}, "budgets": [0.2, 0.05]}])
def test_a_cost_that_no_schedule_reaches_is_refused_by_name_and_with_its_limit(aims: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=r"^(tiers\.fast|budgets\.1): nothing is as cheap as 0\.05: .* 10 steps costs 0\.1$"):
        JobConfig.parse({**PATHS, **aims, "teacher_steps": 10})


@pytest.mark.parametrize("steps", range(4, 900, 7))
def test_one_step_of_the_teacher_is_a_cost_to_aim_at(steps: int) -> None:
    macs = 2_748_000_001
    assert JobConfig.parse({**PATHS, "teacher_steps": steps, "tiers": {}, "budgets": [macs / (macs * steps)]}).ceilings


def test_prompts_and_features_that_changed_since_the_search_are_refused(tmp_path: Path) -> None:
    prompts, features = tmp_path / "prompts.txt", tmp_path / "clip"
    features.mkdir()
    weights = features / "model.safetensors"
    prompts.write_text("a\nb\n")
    weights.write_bytes(b"weights")
    config = JobConfig.parse(
        {
            **PATHS,
            "prompts": str(prompts),
            "prompts_digest": digest_of(prompts),
            "features": str(features),
            "features_digest": digest_of(features),
        }
    )
    config.refuse_changed_files()
    weights.write_bytes(b"weightz")
    with pytest.raises(InvalidInput, match=r"^features: "):
        config.refuse_changed_files()
    weights.rename(features / "other.safetensors")
    (features / "other.safetensors").write_bytes(b"weights")
    with pytest.raises(InvalidInput, match=r"^features: "):
        config.refuse_changed_files()
    (features / "other.safetensors").rename(weights)
    prompts.write_text("a\nc\n")
    with pytest.raises(InvalidInput, match=r"^prompts: "):
        config.refuse_changed_files()


def test_what_is_not_there_has_no_digest(tmp_path: Path) -> None:
    assert digest_of(tmp_path / "nothing") == digest_of(tmp_path) == ""


def test_a_configuration_of_before_models_had_names_is_the_same_job(tmp_path: Path) -> None:
    now = JobConfig.parse(PATHS)
    before = now.model_dump(mode="json")
    assert before.pop("name") is None
    assert JobConfig.model_validate(before) == now


def test_a_configuration_of_before_extrapolations_and_geometric_means_had_neither() -> None:
    given_today, of_before = (
        JobConfig(model="m", features="f", guidance=3, extrapolate=True, mean="geometric"),
        JobConfig(model="m", features="f", guidance=3),
    )
    assert (of_before.extrapolate, of_before.mean) == (True, "geometric"), "of a search that begins today"
    assert given_today.as_kept() == given_today
    assert (of_before.as_kept().extrapolate, of_before.as_kept().mean) == (False, "arithmetic")
