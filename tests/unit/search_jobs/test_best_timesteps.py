"""Local errors are what corrections leave of a step, and the chosen timesteps have the smallest sum of them."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.flow import FlowLevels
from engine.noise import Floats, NoiseLevels, Trajectory, Walk
from engine.program import compile_program
from engine.program_step import ProgramStep, corrected
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName
from search_jobs.best_timesteps import MOST_POINTS, OFF, BestTimesteps
from search_jobs.fit import UNetCall, fit
from search_jobs.path import TeacherPath

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
WALKS = {"ddim": Walk("trailing", 0), "dpmsolver++": Walk("trailing", 0)}
LEVELS = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", WALKS)
CLIPPED = replace(LEVELS, clip=0.8)
FLOW = FlowLevels(
    1 - np.arange(1, 1001) / 1000, 1.0, "flow_prediction", {name: Walk("linspace", 0) for name in ("euler", "dpmsolver++")}
)
IMAGES = 3


def teacher_points(steps: int, levels: NoiseLevels = LEVELS) -> Trajectory:
    name = levels.plain_solver
    return levels.trajectory(Solver(name=name, teacher_steps=steps, spacing=levels.walks[name].spacing))


def start_of(points: Trajectory) -> torch.Tensor:
    return points.start * torch.randn((IMAGES, 2, 4, 4), generator=torch.Generator().manual_seed(99))


def some_path(points: Trajectory, seed: int, clip: float = np.inf) -> TeacherPath:
    """Clean latents that wander a little from point to point, and the noise that is with them in each latent on the way.

    Where they are clipped it is the noises that wander, and the clean latents those that go with them.
    """
    rng = torch.Generator().manual_seed(seed)
    shape = (len(points.timesteps), IMAGES, 2, 4, 4)
    clean, noise = (torch.randn(shape[1:], generator=rng) + 0.3 * torch.randn(shape, generator=rng).cumsum(0) for _ in "12")
    x, levels = start_of(points), [*zip(points.alphas.tolist(), points.sigmas.tolist(), strict=True), points.end]
    for i, (alpha, sigma) in enumerate(levels[:-1]):
        if np.isfinite(clip):
            clean[i] = ((x - sigma * noise[i]) / alpha).clamp(-clip, clip)
        else:
            noise[i] = (x - alpha * clean[i]) / sigma
        x = levels[i + 1][0] * clean[i] + levels[i + 1][1] * noise[i]
    return TeacherPath(points.sigmas / np.maximum(points.alphas, 1e-9), clean, noise, clean[-1] + 0.01 * noise[-1])


def latent(path: TeacherPath, points: Trajectory, i: int) -> torch.Tensor:
    if i == len(points.timesteps):
        return path.end
    if i == 0:
        return start_of(points)
    return float(points.alphas[i]) * path.clean[i - 1] + float(points.sigmas[i]) * path.noise[i - 1]


def stepped(
    levels: NoiseLevels, name: SolverName, points: Trajectory, path: TeacherPath, way: tuple[int, int, int]
) -> tuple[ProgramStep, UNetCall, torch.Tensor]:
    """The program's step from the second to the third of these points, the call before it, and where the path is then."""
    before, at, target = way
    timesteps = [points.timesteps[i] for i in way if 0 <= i < len(points.timesteps)]
    schedule = Schedule(
        model=MODEL,
        solver=Solver(name=name, teacher_steps=len(timesteps), spacing=levels.walks[name].spacing),
        segments=(Segment(),) * len(timesteps),
        timesteps=tuple(round(float(timestep)) for timestep in timesteps),
    )
    step = compile_program(schedule, levels, 4).steps[before >= 0]
    x, output = latent(path, points, at), path.noise[at] - path.clean[at] * isinstance(levels, FlowLevels)
    known = path.clean[before] if before >= 0 else torch.zeros_like(x)
    return step, UNetCall(x, known, output, None, None), latent(path, points, target)


def left(reached: torch.Tensor, goal: torch.Tensor, points: Trajectory, target: int) -> float:
    level = (points.alphas[target], points.sigmas[target]) if target < len(points.timesteps) else points.end
    return float((reached - goal).double().square().mean()) / float(level[0] ** 2 + level[1] ** 2)


@pytest.mark.parametrize("levels", [LEVELS, CLIPPED, FLOW], ids=["noise", "clipped", "flow"])
@given(seed=st.integers(0, 2**32), where=st.sets(st.integers(-1, 9), min_size=3, max_size=3))
def test_an_error_is_what_a_fitted_correction_leaves(levels: NoiseLevels, seed: int, where: set[int]) -> None:
    """By the search's own fit, of the program's own step between three of the teacher's timesteps, or from the first, or to the
    end; and a share of what it takes of its predictions."""
    before, at, after = sorted(where)
    points = teacher_points(10, levels)
    path = some_path(points, seed, levels.clip)
    best = BestTimesteps.of(path, points, start_of(points), levels)
    for target in (after, 10):
        step, call, goal = stepped(levels, levels.plain_solver, points, path, (before, at, target))
        assert step.clip == levels.clip
        reached, _ = call.advance(corrected(step, fit(step, call, 1.0, goal)), 1.0)
        level = points.alphas[target] if target < 10 else points.end[0]
        predictions = [path.noise[at] if levels.clips else path.clean[at], call.before][: 1 + (before >= 0)]
        wanted = goal - float(level) * path.clean[at] * levels.clips
        columns = torch.stack([call.latent, *predictions]).flatten(1).double()
        taken = torch.linalg.lstsq(columns.T, wanted.flatten()[:, None].double()).solution * columns
        off = left(OFF**0.5 * taken[1:].square().sum(0).sqrt(), torch.tensor(0.0), points, target)
        expected = left(reached, goal, points, target) + off
        assert best.errors[before + 1, at, target] == pytest.approx(expected, rel=3e-3, abs=2e-5)


@pytest.mark.parametrize("levels", [LEVELS, FLOW], ids=["noise", "flow"])
@pytest.mark.parametrize("solver", ["plain", "dpmsolver++"])
@given(seed=st.integers(0, 2**32), where=st.sets(st.integers(-1, 9), min_size=3, max_size=3))
def test_without_corrections_an_error_is_that_of_the_solvers_own_step(
    levels: NoiseLevels, solver: SolverName, seed: int, where: set[int]
) -> None:
    before, at, after = sorted(where)
    points = teacher_points(10, levels)
    path, name = some_path(points, seed), levels.plain_solver if solver == "plain" else solver
    best = BestTimesteps.of(path, points, start_of(points), levels, name)
    for target in (after, 10):
        step, call, goal = stepped(levels, name, points, path, (before, at, target))
        reached, _ = call.advance(step, 1.0)
        assert best.errors[before + 1, at, target] == pytest.approx(left(reached, goal, points, target), rel=2e-3, abs=2e-5)
    assert np.isinf(best.errors[at + 1 :, at]).all()
    assert np.isinf(best.errors[:, at, : at + 1]).all()


def sum_of(errors: Floats, signal: Floats, late: float, steps: tuple[int, ...]) -> float:
    """Of the errors along steps 0 … to the end, each as often as the signal where it lands says."""
    points = errors.shape[1]
    ways = zip((-1, *steps), steps, (*steps[1:], points), strict=False)
    return sum(float(errors[p + 1, i, j] * signal[j] ** late) for p, i, j in ways)


@given(seed=st.integers(0, 2**32), late=st.floats(-1, 3), count=st.integers(1, 8))
def test_no_other_choice_of_as_many_timesteps_has_a_smaller_sum(seed: int, late: float, count: int) -> None:
    """Against all of them, of random errors."""
    rng, points = np.random.default_rng(seed), 8
    errors = np.full((points + 1, points, points + 1), np.inf)
    for p, i, j in combinations(range(-1, points + 1), 3):
        errors[p + 1, i, j] = rng.exponential()
    signal, timesteps = np.linspace(0.01, 1, points + 1), list(range(990, 990 - 10 * points, -10))
    chosen = BestTimesteps(timesteps, signal, errors).chosen(count, late)
    assert chosen is not None
    steps = tuple(timesteps.index(timestep) for timestep in chosen)
    assert len(steps) == count
    assert steps[0] == 0
    every = [sum_of(errors, signal, late, (0, *rest)) for rest in combinations(range(1, points), count - 1)]
    assert sum_of(errors, signal, late, steps) == pytest.approx(min(every))


def test_signal_is_its_share_of_the_latents_and_pure_noise_has_none() -> None:
    points, flow = teacher_points(10), teacher_points(10, FLOW)
    np.testing.assert_allclose(
        BestTimesteps.of(some_path(points, 3), points, start_of(points), LEVELS).signal, [*points.alphas**2, 1]
    )
    best = BestTimesteps.of(some_path(flow, 3), flow, start_of(flow), FLOW)
    np.testing.assert_allclose(best.signal, [*flow.alphas**2 / (flow.alphas**2 + flow.sigmas**2), 1])
    assert best.signal[0] == 0
    for late in (0.0, 0.5, 2.0):
        chosen = best.chosen(4, late)
        assert chosen is not None
        assert chosen[0] == 1000
        assert list(chosen) == sorted(set(chosen), reverse=True)


def test_timesteps_are_the_nearest_whole_ones() -> None:
    points = replace(teacher_points(4), timesteps=np.array([998.6, 700.4, 400.5001, 0.2]))
    assert BestTimesteps.of(some_path(points, 0), points, start_of(points), LEVELS).timesteps == [999, 700, 401, 0]
    late = FlowLevels(LEVELS.alphas_cumprod, 1.0, "flow_prediction", FLOW.walks)
    best = BestTimesteps.of(some_path(points, 0), points, start_of(points), late)
    assert best.timesteps == [999, 700, 401, 1], "at 0 is the image itself"


def test_there_are_as_many_as_the_teacher_has_and_no_more() -> None:
    points = teacher_points(6)
    best = BestTimesteps.of(some_path(points, 1), points, start_of(points), LEVELS)
    assert best.chosen(6, 1.0) == tuple(points.timesteps.astype(int).tolist())
    assert best.chosen(7, 1.0) is None
    assert best.chosen(0, 1.0) is None


def test_of_a_longer_path_some_points_are_tried_and_their_errors_are_the_same() -> None:
    """The first and the last of them too; a step lands where the whole path is."""
    points = teacher_points(3 * MOST_POINTS)
    path = some_path(points, 2)
    best = BestTimesteps.of(path, points, start_of(points), LEVELS)
    assert len(best.timesteps) == MOST_POINTS
    assert (best.timesteps[0], best.timesteps[-1]) == (points.timesteps[0], points.timesteps[-1])
    before, at, after = (points.timesteps.tolist().index(best.timesteps[i]) for i in (5, 20, 40))
    columns = [latent(path, points, at), path.clean[at], path.clean[before]]
    known, goal = torch.stack([column.flatten() for column in columns], 1).double(), latent(path, points, after).flatten()
    over = torch.linalg.lstsq(known, goal[:, None].double()).residuals
    if not over.numel():
        over = (known @ torch.linalg.lstsq(known, goal[:, None].double()).solution - goal[:, None]).square().sum()
    least = float(over) / goal.numel()
    assert least < best.errors[6, 20, 40] < least + 1e-2
