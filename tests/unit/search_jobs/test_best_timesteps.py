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
from engine.program_step import corrected
from registry.schedule import ModelRef, Schedule, Segment, Solver
from search_jobs.best_timesteps import MOST_POINTS, BestTimesteps
from search_jobs.fit import UNetCall, fit
from search_jobs.path import TeacherPath

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
LEVELS = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", {"ddim": Walk("trailing", 0)})
CLIPPED = replace(LEVELS, clip=0.8)
FLOW = FlowLevels(1 - np.arange(1, 1001) / 1000, 1.0, "flow_prediction", {"euler": Walk("linspace", 0)})
IMAGES = 3


def teacher_points(steps: int, levels: NoiseLevels = LEVELS) -> Trajectory:
    name = levels.plain_solver
    return levels.trajectory(Solver(name=name, teacher_steps=steps, spacing=levels.walks[name].spacing))


def some_path(points: Trajectory, seed: int, clip: float = np.inf) -> TeacherPath:
    """Clean latents that wander a little from point to point, and noises that do."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(points.timesteps), IMAGES, 2, 4, 4)
    clean, noise = (torch.randn(shape[1:], generator=rng) + 0.3 * torch.randn(shape, generator=rng).cumsum(0) for _ in "12")
    if np.isfinite(clip):  # then what is predicted depends on the latent, which is where the step before ended
        x = float(points.alphas[0]) * clean[0] + float(points.sigmas[0]) * noise[0]
        for i, (alpha, sigma) in enumerate(zip(points.alphas.tolist(), points.sigmas.tolist(), strict=True)):
            clean[i] = ((x - sigma * noise[i]) / alpha).clamp(-clip, clip)
            x = (
                0 * x
                if i + 1 == len(clean)
                else float(points.alphas[i + 1]) * clean[i] + float(points.sigmas[i + 1]) * noise[i]
            )
    return TeacherPath(points.sigmas / np.maximum(points.alphas, 1e-9), clean, noise, clean[-1] + 0.01 * noise[-1])


def latent(path: TeacherPath, points: Trajectory, i: int) -> torch.Tensor:
    if i == len(points.timesteps):
        return path.end
    before = max(i - 1, 0)
    return float(points.alphas[i]) * path.clean[before] + float(points.sigmas[i]) * path.noise[before]


@pytest.mark.parametrize("levels", [LEVELS, CLIPPED, FLOW], ids=["noise", "clipped", "flow"])
@given(seed=st.integers(0, 2**32), where=st.sets(st.integers(0, 9), min_size=3, max_size=3))
def test_an_error_is_what_a_fitted_correction_leaves(levels: NoiseLevels, seed: int, where: set[int]) -> None:
    """By the search's own fit, of the program's own step between three of the teacher's timesteps, or to the end."""
    before, at, after = sorted(where)
    points = teacher_points(10, levels)
    path = some_path(points, seed, levels.clip)
    best = BestTimesteps.of(path, points, clips=levels.clips)
    for target in (after, 10):
        timesteps = [points.timesteps[i] for i in (before, at, target) if i < 10]
        name = levels.plain_solver
        schedule = Schedule(
            model=MODEL,
            solver=Solver(name=name, teacher_steps=len(timesteps), spacing=levels.walks[name].spacing),
            segments=(Segment(),) * len(timesteps),
            timesteps=tuple(round(float(timestep)) for timestep in timesteps),
        )
        step = compile_program(schedule, levels, 4).steps[1]
        assert step.clip == levels.clip
        x, alpha, sigma = latent(path, points, at), float(points.alphas[at]), float(points.sigmas[at])
        if levels.clips:  # the latent then is no longer α x₀ + σ ε
            output = path.noise[at]
        else:
            noise = (x - alpha * path.clean[at]) / sigma
            output = noise - path.clean[at] if levels is FLOW else noise
        call = UNetCall(x, path.clean[before], output, None, None)
        goal = latent(path, points, target)
        reached, _ = call.advance(corrected(step, fit(step, call, 1.0, goal)), 1.0)
        level = (points.alphas[target], points.sigmas[target]) if target < 10 else points.end
        left = float((reached - goal).double().square().mean()) / (level[0] ** 2 + level[1] ** 2)
        assert best.errors[before + 1, at, target] == pytest.approx(left, rel=2e-3, abs=2e-5)


def test_without_corrections_an_error_is_that_of_the_solvers_own_step() -> None:
    points = teacher_points(10)
    path = some_path(points, 0)
    best = BestTimesteps.of(path, points, corrected=False)
    made = float(points.alphas[7]) * path.clean[3] + float(points.sigmas[7]) * path.noise[3]
    left = float((made - latent(path, points, 7)).double().square().mean())
    assert {round(float(best.errors[p, 3, 7]), 6) for p in range(4)} == {round(left, 6)}
    assert np.isinf(best.errors[4:, 3, 7]).all()


def sum_of(errors: Floats, signal: Floats, late: float, steps: tuple[int, ...]) -> float:
    """Of the errors along steps 0 … to the end, each as often as the signal where it lands says."""
    points = errors.shape[1]
    ways = zip((-1, *steps), steps, (*steps[1:], points), strict=False)
    return sum(float(errors[p + 1, i, j] * signal[j] ** late) for p, i, j in ways)


@given(seed=st.integers(0, 2**32), late=st.floats(0, 3), count=st.integers(1, 8))
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
    np.testing.assert_allclose(BestTimesteps.of(some_path(points, 3), points).signal, [*points.alphas**2, 1])
    best = BestTimesteps.of(some_path(flow, 3), flow)
    np.testing.assert_allclose(best.signal, [*flow.alphas**2 / (flow.alphas**2 + flow.sigmas**2), 1])
    assert best.signal[0] == 0
    for late in (0.0, 0.5, 2.0):
        chosen = best.chosen(4, late)
        assert chosen is not None
        assert chosen[0] == 1000
        assert list(chosen) == sorted(set(chosen), reverse=True)


def test_timesteps_are_the_nearest_whole_ones() -> None:
    points = replace(teacher_points(4), timesteps=np.array([998.6, 700.4, 400.5001, 0.2]))
    assert BestTimesteps.of(some_path(points, 0), points).timesteps == [999, 700, 401, 0]


def test_there_are_as_many_as_the_teacher_has_and_no_more() -> None:
    points = teacher_points(6)
    best = BestTimesteps.of(some_path(points, 1), points)
    assert best.chosen(6, 1.0) == tuple(points.timesteps.astype(int).tolist())
    assert best.chosen(7, 1.0) is None
    assert best.chosen(0, 1.0) is None


def test_of_a_longer_path_some_points_are_tried_and_their_errors_are_the_same() -> None:
    """The first and the last of them too; a step lands where the whole path is."""
    points = teacher_points(3 * MOST_POINTS)
    path = some_path(points, 2)
    best = BestTimesteps.of(path, points)
    assert len(best.timesteps) == MOST_POINTS
    assert (best.timesteps[0], best.timesteps[-1]) == (points.timesteps[0], points.timesteps[-1])
    before, at, after = (points.timesteps.tolist().index(best.timesteps[i]) for i in (5, 20, 40))
    columns = [latent(path, points, at), path.clean[at], path.clean[before]]
    known, goal = torch.stack([column.flatten() for column in columns], 1).double(), latent(path, points, after).flatten()
    left = torch.linalg.lstsq(known, goal[:, None].double()).residuals
    if not left.numel():
        left = (known @ torch.linalg.lstsq(known, goal[:, None].double()).solution - goal[:, None]).square().sum()
    assert best.errors[6, 20, 40] == pytest.approx(float(left) / goal.numel(), rel=1e-3)
