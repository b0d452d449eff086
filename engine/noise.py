"""Noise levels: what the model was trained on, and the trajectory along which a solver walks them.

Everything here is in the variance-preserving frame: a latent at level (α, σ) is x = α x₀ + σ ε with α² + σ² = 1. Solvers that
are written in the variance-exploding frame (Euler, Karras et al. arXiv 2206.00364) see the same latent divided by α, at level
σ/α. Flow matching has a frame of its own (`engine.flow`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.errors import InvalidInput, Unsupported
from registry.schedule import STOCHASTIC, Solver, SolverName, Spacing

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Floats = NDArray[np.floating[Any]]  # float64 all of it
ALMOST_ZERO = 2.0**-24  # ᾱ that diffusers' multistep and Euler schedulers take for zero terminal signal, to stay finite
KARRAS_RHO = 7.0  # arXiv 2206.00364, section 3


@dataclass(frozen=True)
class Trajectory:
    """The teacher's points in the order of sampling: timesteps, alphas and sigmas, each (n,).

    `end` is the level (α, σ) after the last one; `start` is what unit noise is multiplied with to begin.
    """

    timesteps: Floats
    alphas: Floats
    sigmas: Floats
    end: tuple[float, float]
    start: float

    def at(self, points: list[int]) -> Trajectory:
        """Only these points of it, as if the others were not there."""
        return replace(self, timesteps=self.timesteps[points], alphas=self.alphas[points], sigmas=self.sigmas[points])

    def before(self, other: Trajectory) -> Trajectory:
        """The points of both, these first, to the other's end."""
        return replace(
            other,
            timesteps=np.concatenate([self.timesteps, other.timesteps]),
            alphas=np.concatenate([self.alphas, other.alphas]),
            sigmas=np.concatenate([self.sigmas, other.sigmas]),
        )


class Walk(NamedTuple):
    """How a model's makers walk its noise levels back with one solver; a schedule brings its own spacing and levels.

    refusal: the first of their settings for this solver that no program expresses, and what is wrong with it.
    original_steps, boundary: of the solver lcm, the grid that a latent consistency model was distilled on, of which its steps
    are some, and the factor on timesteps in its boundary condition.
    """

    spacing: Spacing
    steps_offset: int
    karras: bool = False
    refusal: tuple[str, str] | None = None
    original_steps: int = 50
    boundary: float = 10.0


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The model's forward process, and how its makers walk it back with each solver.

    alphas_cumprod (train_steps,) is ᾱ_t = α_t². `final_alpha_cumprod` is ᾱ after a DDIM trajectory's last step. `clip` bounds
    the predicted clean latent in DDIM (pixel models).
    """

    alphas_cumprod: Floats
    final_alpha_cumprod: float
    prediction: Prediction
    walks: Mapping[SolverName, Walk]
    clip: float = math.inf
    cosine: bool = False

    @property
    def plain_solver(self) -> SolverName:
        """The one whose steps are those of the model's paper, one after the other, from one prediction each."""
        return "ddim"

    @property
    def clips(self) -> bool:
        """Whether clean latents are bounded: those of pixel models mostly are."""
        return math.isfinite(self.clip)

    def remaining(self, steps: int, strength: float) -> int:
        """How many of a trajectory's steps run from an image, where steps · strength may be no whole number."""
        return int(steps * strength)

    def of_tokens(self, tokens: int) -> NoiseLevels:
        """Those of images of so many patches: the same, but where the model's makers walk larger images through more noise.

        Raises `InvalidInput` for a number that makes none.
        """
        return self

    def solver(self, name: SolverName, teacher_steps: int) -> Solver:
        """A solver on the makers' own spacing and levels. Raises `Unsupported` naming a setting that none here can follow."""
        walk = self.walks[name]
        if walk.refusal:
            setting, wrong = walk.refusal
            others = [other for other, way in self.walks.items() if way.refusal is None and other not in STOCHASTIC]
            instead = f"; choose {' or '.join(others)}" if others else ""
            raise Unsupported(f"{wrong} in the scheduler config is not supported by the solver {name}{instead}", param=setting)
        return Solver(name=name, teacher_steps=teacher_steps, spacing=walk.spacing, karras=walk.karras)

    def trajectory(self, solver: Solver, timesteps: Sequence[int] | None = None) -> Trajectory:
        """The same points that diffusers' scheduler of that solver visits, or would at these timesteps instead of its own.

        Raises `InvalidInput` for more steps, or a later one, than the model was trained on.
        """
        self.refuse_steps(solver, timesteps)
        train = len(self.alphas_cumprod)
        grid: Floats = self._grid(solver) if timesteps is None else np.array(timesteps, dtype=np.float64)
        if solver.name == "ddim":
            cumprod = self.alphas_cumprod[grid.astype(np.int64)]
            end = (math.sqrt(self.final_alpha_cumprod), math.sqrt(1 - self.final_alpha_cumprod))
            return Trajectory(grid, np.sqrt(cumprod), np.sqrt(1 - cumprod), end, start=1.0)
        if solver.name == "lcm":
            cumprod = self.alphas_cumprod[grid.astype(np.int64)]
            return Trajectory(grid, np.sqrt(cumprod), np.sqrt(1 - cumprod), (1.0, 0.0), start=1.0)
        levels, euler = self._exploding(), solver.name in ("euler", "euler-ancestral")
        ratios: Floats = np.interp(grid, np.arange(train), levels)
        if solver.karras:
            first, last = (ratios[0], ratios[-1]) if euler else (levels[-1], levels[0])
            ratios = _karras(first, last, solver.teacher_steps)
            grid = np.interp(np.log(ratios), np.log(levels), np.arange(train))
            if solver.name == "dpmsolver++":  # shows the UNet whole timesteps
                grid = np.trunc(grid) if self.cosine else grid.round()
        alphas = 1 / np.sqrt(1 + ratios**2)
        # Euler's scheduler starts at the level itself, except for leading, where it adds the signal's share of variance.
        start = float(ratios[0] * alphas[0]) if euler and solver.spacing != "leading" else 1.0
        return Trajectory(grid, alphas, ratios * alphas, (1.0, 0.0), start)

    @property
    def first_timestep(self) -> int:
        """That of the least noise."""
        return 0

    @property
    def last_timestep(self) -> int:
        """That of the most noise."""
        return len(self.alphas_cumprod) - 1

    def refuse_steps(self, solver: Solver, timesteps: Sequence[int] | None) -> None:
        """Raises `InvalidInput` for more steps, or a later one, than the model was trained on."""
        train = len(self.alphas_cumprod)
        if solver.teacher_steps > train:
            message = f"the model was trained on {train} timesteps, got {solver.teacher_steps}"
            raise InvalidInput(message, param="teacher_steps")
        if timesteps is not None and timesteps[0] > self.last_timestep:
            raise InvalidInput(f"the limit is {self.last_timestep}, got {timesteps[0]}", param="timesteps")

    def _grid(self, solver: Solver) -> Floats:
        """The teacher's timesteps, descending, (steps,) (arXiv 2305.08891, table 2)."""
        train, steps = len(self.alphas_cumprod), solver.teacher_steps
        if solver.name == "lcm":
            return self._lcm_grid(steps)
        multistep = solver.name == "dpmsolver++"  # whose scheduler leaves out one end of the grid
        grid: Floats
        if solver.spacing == "linspace":
            grid = np.linspace(0, train - 1, steps + multistep)[::-1][:steps]
            grid = grid if solver.name.startswith("euler") else grid.round()
        elif solver.spacing == "leading":
            ratio = train // (steps + multistep)
            grid = (np.arange(steps + multistep) * ratio)[::-1][:steps] + float(self.walks[solver.name].steps_offset)
        else:
            grid = np.arange(train, 0, -train / steps).round()[:steps] - 1
        return np.clip(grid, 0, train - 1)

    def _lcm_grid(self, steps: int) -> Floats:
        """Evenly chosen among the timesteps that a latent consistency model was distilled on (arXiv 2310.04378, section 4.3).

        Raises `InvalidInput` for more steps than these, or than were trained on.
        """
        train, original = len(self.alphas_cumprod), self.walks["lcm"].original_steps
        if steps > original or original > train:
            limit = f"original_inference_steps of the scheduler ({original}) of {train} trained timesteps"
            raise InvalidInput(f"the solver lcm chooses among {limit}, got {steps}", param="teacher_steps")
        places = np.floor(np.linspace(0, original, steps, endpoint=False))
        grid: Floats = (original - places) * (train // original) - 1
        return grid

    def _exploding(self) -> Floats:
        """σ/α of every training timestep, ascending."""
        cumprod = np.where(self.alphas_cumprod == 0, ALMOST_ZERO, self.alphas_cumprod)
        levels: Floats = np.sqrt((1 - cumprod) / cumprod)
        return levels


def _karras(first: float, last: float, steps: int) -> Floats:
    """σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ (arXiv 2206.00364, equation 5), (steps,)."""
    ramp: Floats = np.linspace(first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO), steps) ** KARRAS_RHO
    return ramp
