"""A schedule compiled for a solver: the steps that are really computed, each with a few numbers.

Every supported solver is linear in the current latent x, the predicted clean latent x₀ and the x₀ of the step before.
With signal α and noise σ (α² + σ² = 1, x_t = α x₀ + σ ε), one step is

    x₀  = clean_x · x + clean_m · m            m: the UNet's output (epsilon, v or sample prediction)
    x′  = next_x · x + next_0 · x₀ + next_1 · x₀_before

so rows with different schedules, solvers and positions can share one UNet call. All numbers are float64, computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registry.errors import InvalidInput, Unsupported
from registry.schedule import Schedule, Spacing

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseLevels:
    """The model's forward process: what training fixed, and where the sampling trajectory ends.

    `alphas_cumprod` (train_steps,) is ᾱ_t = α_t²; `final_alpha_cumprod` is ᾱ after a DDIM trajectory's last step.
    """

    alphas_cumprod: NDArray[np.float64]
    final_alpha_cumprod: float
    prediction: Prediction
    spacing: Spacing
    steps_offset: int

    def timesteps(self, solver: str, steps: int, spacing: Spacing) -> NDArray[np.int64]:
        """The teacher's timesteps, descending, (steps,): the same as diffusers' scheduler of that solver gives."""
        train = len(self.alphas_cumprod)
        if steps > train:
            raise InvalidInput(f"teacher_steps: the model was trained on {train} timesteps, got {steps}", param="teacher_steps")
        grid: NDArray[np.float64] | NDArray[np.int64]
        multistep = solver == "dpmsolver++"  # diffusers' multistep schedulers leave out one end of the grid
        if spacing == "linspace":
            if multistep:
                grid = np.linspace(0, train - 1, steps + 1).round()[::-1][:-1]
            else:
                grid = np.linspace(0, train - 1, steps).round()[::-1]
        elif spacing == "leading":
            ratio = train // (steps + 1) if multistep else train // steps
            grid = (np.arange(steps + multistep) * ratio)[::-1][:steps] + self.steps_offset
        else:
            grid = np.arange(train, 0, -train / steps).round()[:steps] - 1
        return np.clip(grid, 0, train - 1).astype(np.int64)


@dataclass(frozen=True)
class ProgramStep:
    """One computed step. `index` is its place in the teacher's trajectory; a full step's `branch` says which feature to keep
    for the partial steps after it (0: none). The numbers are those of the module's two equations."""

    index: int
    kind: Literal["full", "partial"]
    branch: int
    timestep: int
    clean_x: float
    clean_m: float
    next_x: float
    next_0: float
    next_1: float


@dataclass(frozen=True)
class Program:
    """What one row of `schedule` runs, in order. Null steps are not in it: the solver jumps over them."""

    schedule: Schedule
    steps: tuple[ProgramStep, ...]


def compile_program(schedule: Schedule, levels: NoiseLevels, branches: int) -> Program:
    """Compile for a model with these noise levels whose UNet has `branches` branches.

    Raises `InvalidInput` when a segment's branch is past the UNet's last one or the trajectory does not fit.
    """
    for i, segment in enumerate(schedule.segments):
        if segment.branch > branches:
            raise InvalidInput(
                f"segments.{i}.branch: this UNet has branches 1 to {branches}, got {segment.branch}",
                param=f"segments.{i}.branch",
            )
    solver = schedule.solver
    grid = levels.timesteps(solver.name, solver.teacher_steps, solver.spacing)
    visited = [step for step in schedule.steps() if step.kind != "null"]
    timesteps = [int(grid[step.index]) for step in visited]
    if len(set(timesteps)) != len(timesteps):
        raise InvalidInput("teacher_steps: the trajectory visits a timestep twice", param="teacher_steps")
    updates = _ddim(levels, timesteps) if solver.name == "ddim" else _dpmsolver_2m(levels, timesteps)
    steps = []
    for step, timestep, update in zip(visited, timesteps, updates, strict=True):
        segment = schedule.segments[step.index // schedule.length]
        branch = segment.branch if segment.partial else 0
        steps.append(ProgramStep(step.index, step.kind, branch, timestep, *_clean(levels, timestep), *update))  # type: ignore[arg-type]  # null was filtered
    return Program(schedule, tuple(steps))


def _signal_noise(alpha_cumprod: float) -> tuple[float, float]:
    """(α, σ) of a noise level."""
    return math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod)


def _clean(levels: NoiseLevels, timestep: int) -> tuple[float, float]:
    """x₀ from x and the UNet's output m: ε-prediction (x − σm)/α; v-prediction αx − σm (arXiv 2202.00512); sample m."""
    alpha, sigma = _signal_noise(float(levels.alphas_cumprod[timestep]))
    if levels.prediction == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if levels.prediction == "v_prediction":
        return alpha, -sigma
    if levels.prediction == "sample":
        return 0.0, 1.0
    raise Unsupported(f"prediction_type {levels.prediction!r} is not supported", param="prediction_type")


def _ddim(levels: NoiseLevels, timesteps: list[int]) -> list[tuple[float, float, float]]:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12, η = 0) with ε = (x − αx₀)/σ: x′ = (σ′/σ)x + (α′ − ασ′/σ)x₀.

    A jump of any length is the same equation with the next visited timestep's α′ and σ′.
    """
    cumprods = [float(levels.alphas_cumprod[t]) for t in timesteps] + [levels.final_alpha_cumprod]
    levels_in_order = [_signal_noise(c) for c in cumprods]
    return [
        (sigma_next / sigma, alpha_next - alpha * sigma_next / sigma, 0.0)
        for (alpha, sigma), (alpha_next, sigma_next) in pairwise(levels_in_order)
    ]


def _dpmsolver_2m(levels: NoiseLevels, timesteps: list[int]) -> list[tuple[float, float, float]]:
    """DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2).

    With λ = ln(α/σ), h = λ′ − λ, r = (λ − λ_before)/h, φ = −α′(e^{−h} − 1):
    x′ = (σ′/σ)x + φ(1 + 1/2r)x₀ − (φ/2r)x₀_before.  The first step and the last are first order; the last goes to σ′ = 0,
    where x′ = x₀.
    """
    alphas, sigmas = zip(*(_signal_noise(float(levels.alphas_cumprod[t])) for t in timesteps), strict=True)
    lambdas = [math.log(alpha / sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    updates = []
    for i in range(len(timesteps) - 1):
        h = lambdas[i + 1] - lambdas[i]
        phi = -alphas[i + 1] * math.expm1(-h)
        half = 0.0 if i == 0 else 0.5 * h / (lambdas[i] - lambdas[i - 1])
        updates.append((sigmas[i + 1] / sigmas[i], phi * (1.0 + half), -phi * half))
    return [*updates, (0.0, 1.0, 0.0)]
