"""What a user could set by hand: every pattern in every setting of the solvers, within the budget."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from engine.noise import NoiseLevels, Walk
from engine.program import compile_program
from registry.schedule import ModelRef, Schedule, Segment, SolverName
from search_jobs.baselines import Baseline, Baselines, uneven
from search_jobs.space import Genome, Space

MODEL = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++", "euler")
LATENT = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", dict.fromkeys(SOLVERS, Walk("leading", 1)))
PIXELS = replace(LATENT, clip=1.0)
BRANCHES = 4


def baselines(levels: NoiseLevels) -> Baselines:
    def cost(schedule: Schedule) -> float:
        steps = compile_program(schedule, levels, BRANCHES).steps
        return sum(1.0 if step.kind == "full" else 0.06 * step.branch for step in steps) / 50

    return Baselines(MODEL, levels, BRANCHES, cost)


@pytest.fixture(scope="module", params=[LATENT, PIXELS], ids=["latent", "pixels"])
def offered(request: pytest.FixtureRequest) -> tuple[NoiseLevels, list[Baseline]]:
    return request.param, list(baselines(request.param).every_setting(0.3, 50, every=(2, 3)))


def test_even_patterns_are_what_is_strongest_without_deepcache_on_one_solver() -> None:
    one = baselines(LATENT)
    makers = {one.solver(name, 2).spacing for name in ("ddim", "dpmsolver++")}
    every = [each for each in one.strongest(0.3, 50, every=(2, 4)) if each.family != "uniform DeepCache"]
    own = [each for each in every if {each.schedule.solver.spacing} == makers and not each.schedule.solver.karras]
    assert list(one.even(0.3, 50, ("ddim",), every=(2, 4))) == [each for each in own if each.schedule.solver.name == "ddim"]
    segments = [each.schedule.segments for each in one.even(0.3, 50, ("ddim",), every=(2, 4))]
    assert {len(of) * (1 + len(of[0].partial)) <= 50 and len(set(of)) for of in segments} == {1}
    assert {(1 + len(of[0].partial), of[0].branch) for of in segments} == {(1, 1), *product((2, 4), range(1, BRANCHES + 1))}


def test_a_search_is_held_against_full_steps_in_every_setting_and_against_others_in_the_makers_own() -> None:
    settings: dict[tuple[str, bool], set[tuple[str, bool]]] = {}
    for schedule in (each.schedule for each in baselines(LATENT).strongest(0.3, 50)):
        solver, kind = schedule.solver, (schedule.solver.name, bool(schedule.branches))
        settings.setdefault(kind, set()).add((solver.spacing, solver.karras))
    spacings, makers = {("leading", False), ("trailing", False), ("linspace", False)}, {("leading", False)}
    assert settings == {
        ("ddim", False): spacings,
        ("dpmsolver++", False): spacings | {("leading", True)},
        ("ddim", True): makers,
        ("dpmsolver++", True): makers,
    }


def test_every_kind_comes_in_every_setting_of_its_solver_and_within_the_budget(
    offered: tuple[NoiseLevels, list[Baseline]],
) -> None:
    levels, everyone = offered
    settings: dict[str, set[tuple[str, bool]]] = {}
    for one in everyone:
        assert baselines(levels).cost_of(one.schedule) <= 0.3
        settings.setdefault(one.family, set()).add((one.schedule.solver.spacing, one.schedule.solver.karras))
    spacings = {("leading", False), ("trailing", False), ("linspace", False)}
    assert settings == {
        "fewer-step ddim": spacings,
        "fewer-step dpmsolver++": spacings | {("leading", True)},
        "cached fewer-step ddim": spacings,
        "cached fewer-step dpmsolver++": spacings | {("leading", True)},
        "uniform DeepCache": spacings,
        "non-uniform DeepCache": spacings,
    }
    assert len({(one.family, one.schedule.digest) for one in everyone}) == len(everyone) == len({one.name for one in everyone})


def test_dpmsolver_bounds_clean_latents_where_the_makers_do_by_hand_and_in_the_space(
    offered: tuple[NoiseLevels, list[Baseline]],
) -> None:
    levels, everyone = offered
    searched = Space(MODEL, levels, BRANCHES).schedule(Genome("dpmsolver++", (Segment(),) * 5))
    for schedule in (searched, *(one.schedule for one in everyone)):
        assert {step.clip for step in compile_program(schedule, levels, BRANCHES).steps} == {levels.clip}


def test_a_setting_that_the_model_cannot_start_from_is_left_out() -> None:
    silent = replace(LATENT, alphas_cumprod=np.linspace(0.999, 0.0, 1000))
    assert {solver.spacing for solver in baselines(silent).settings("ddim")} == {"leading"}
    assert len(baselines(silent).settings("dpmsolver++")) == 4, "it starts from almost nothing, as diffusers does"


@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5])
def test_non_uniform_deepcache_computes_every_step_and_is_densest_around_its_centre(centre: float) -> None:
    full = uneven(50, 12, centre, 1.4)
    assert full[0] == 0
    gaps = [after - at for at, after in pairwise([*full, 50])]
    densest = min(range(len(gaps)), key=lambda i: (gaps[i], abs(full[i] - centre * 50)))
    assert abs(full[densest] - centre * 50) <= 4
    assert max(gaps) > 2 * min(gaps)
    assert uneven(50, 10, centre, 1.0) == list(range(0, 50, 5)), "a power of one is uniform"


def test_non_uniform_deepcache_walks_the_teachers_own_timesteps(offered: tuple[NoiseLevels, list[Baseline]]) -> None:
    levels, everyone = offered
    teacher = levels.trajectory(baselines(levels).solver("ddim", 50)).timesteps
    uneven_ones = [one.schedule for one in everyone if one.family == "non-uniform DeepCache"]
    own = [schedule for schedule in uneven_ones if schedule.solver.spacing == "leading"]
    assert own
    for schedule in own:
        steps = compile_program(schedule, levels, BRANCHES).steps
        assert [step.timestep for step in steps] == teacher.tolist()
        full = [i for i, step in enumerate(steps) if step.kind == "full"]
        assert len({after - at for at, after in pairwise([*full, 50])}) > 1
