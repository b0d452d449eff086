"""Flow matching (arXiv 2210.02747, 2209.03003): the straight path from data to noise, and how solvers walk it back.

A latent at level σ is x = (1 − σ) x₀ + σ ε, so the frame is α + σ = 1, and the network predicts m = ε − x₀, the path's
direction. It is shown 1000 σ (the number of training steps times σ) as its timestep, which is no whole number.

Euler's step x′ = x + (σ′ − σ) m is x′ = α′ x₀ + σ′ ε with x₀ = x − σ m and ε = x + α m: DDIM's equation in this frame. So it
jumps over null steps in the same way. DPM-Solver++ holds as it is with λ = ln(α/σ), which is −∞ at pure noise, σ = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from typing_extensions import override

from engine.config import defaults, is_whole
from engine.noise import Floats, NoiseLevels, Trajectory, Walk
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Solver, SolverName

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SOLVERS: tuple[SolverName, ...] = ("dpmsolver++", "euler")
OFF = (None, False)
# Settings that would make another grid or other updates, and the values of them that leave all as it is.
REFUSED: dict[str, tuple[object, ...]] = {
    "use_dynamic_shifting": OFF,
    "invert_sigmas": OFF,
    "shift_terminal": (None, 0),
    "use_karras_sigmas": OFF,
    "use_exponential_sigmas": OFF,
    "use_beta_sigmas": OFF,
    "stochastic_sampling": OFF,
}


@dataclass(frozen=True)
class FlowLevels(NoiseLevels):
    """Noise levels of flow matching. ᾱ_t = α_t² of timesteps 1 … train_steps; `shift` moves levels towards the noise."""

    shift: float = 1.0

    @property
    @override
    def plain_solver(self) -> SolverName:
        return "euler"

    @property
    @override
    def first_timestep(self) -> int:
        return 1  # at 0 is the image itself

    @property
    @override
    def last_timestep(self) -> int:
        return len(self.alphas_cumprod)  # pure noise

    @override
    def trajectory(self, solver: Solver, timesteps: Sequence[int] | None = None) -> Trajectory:
        if solver.name not in SOLVERS:
            message = f"must be {' or '.join(SOLVERS)} for a model of flow matching, got {solver.name}"
            raise InvalidInput(message, param="solver.name")
        if solver.spacing != "linspace" or solver.karras:
            got = "Karras levels" if solver.karras else solver.spacing
            raise InvalidInput(f"must be linspace for a model of flow matching, got {got}", param="solver.spacing")
        self.refuse_steps(solver, timesteps)
        if timesteps is not None and timesteps[-1] < self.first_timestep:
            raise InvalidInput("must be at least 1 for a model of flow matching, where 0 is the image", param="timesteps")
        train = len(self.alphas_cumprod)
        sigmas = self._grid(solver) if timesteps is None else np.array(timesteps, dtype=np.float64) / train
        return Trajectory(train * sigmas, 1 - sigmas, sigmas, (1.0, 0.0), start=float(sigmas[0]))

    @override
    def _grid(self, solver: Solver) -> Floats:
        """σ of the teacher's steps, descending: evenly between the ends of the shifted training levels, and shifted once more,
        as diffusers has it.
        """
        first, last = (_shifted(sigma, self.shift) for sigma in (1.0, 1 / len(self.alphas_cumprod)))
        grid: Floats = np.linspace(first, last, solver.teacher_steps)
        return _shifted(grid, self.shift)


def flow_levels(config: Mapping[str, Any]) -> FlowLevels:
    """Noise levels from the configuration of a `FlowMatchEulerDiscreteScheduler`.

    Raises `Unsupported` naming a setting that changes the levels and cannot be expressed.
    """
    full = {**defaults(SCHEDULER), **config}
    for setting, allowed in REFUSED.items():
        if full[setting] not in allowed:
            raise Unsupported(f"{full[setting]!r} in the scheduler config is not supported", param=setting)
    train, shift = full["num_train_timesteps"], full["shift"]
    if not is_whole(train):
        message = f"must be a whole number of at least 1 in the scheduler config, got {train!r}"
        raise Unsupported(message, param="num_train_timesteps")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < np.inf:
        raise Unsupported(f"must be a number above 0 in the scheduler config, got {shift!r}", param="shift")
    sigmas: Floats = _shifted(np.arange(1, train + 1) / train, float(shift))
    refusal = ("prediction_type", "flow matching")
    walks = {name: Walk("linspace", 0, refusal=None if name in SOLVERS else refusal) for name in get_args(SolverName)}
    return FlowLevels((1 - sigmas) ** 2, 1.0, "flow_prediction", walks, shift=float(shift))


def _shifted(sigma: Any, shift: float) -> Any:
    """σ′ = s σ / (1 + (s − 1) σ) (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
