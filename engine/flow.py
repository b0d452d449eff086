"""Flow matching (arXiv 2210.02747, 2209.03003): the straight path from data to noise, and how solvers walk it back.

A latent at level σ is x = (1 − σ) x₀ + σ ε, so the frame is α + σ = 1, and the network predicts m = ε − x₀, the path's
direction. It is shown 1000 σ (the number of training steps times σ) as its timestep, which is no whole number.

Euler's step x′ = x + (σ′ − σ) m is x′ = α′ x₀ + σ′ ε with x₀ = x − σ m and ε = x + α m: DDIM's equation in this frame. So it
jumps over null steps in the same way. DPM-Solver++ holds as it is with λ = ln(α/σ), which is −∞ at pure noise, σ = 1.

Evenly spaced levels are shifted towards the noise, by a number of the model's, or by one that grows with the size of the image:
then the same schedule visits other levels at another size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np
from typing_extensions import override

from engine.config import defaults, is_number, is_whole
from engine.flow_pipeline import PLAINLY, Walked
from engine.noise import Floats, NoiseLevels, Trajectory, Walk
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Solver, SolverName

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SOLVERS: tuple[SolverName, ...] = ("dpmsolver++", "euler")
OFF = (None, False)
# Settings that would make another grid or other updates, and the values of them that leave all as it is.
REFUSED: dict[str, tuple[object, ...]] = {
    "invert_sigmas": OFF,
    "shift_terminal": (None, 0),
    "use_karras_sigmas": OFF,
    "use_exponential_sigmas": OFF,
    "use_beta_sigmas": OFF,
    "stochastic_sampling": OFF,
}


class DynamicShift(NamedTuple):
    """A shift of levels by the number of an image's patches: μ on the line through (fewest, least) and (most, greatest); the
    shift is e^μ, or μ itself (`linear`).
    """

    least: float
    greatest: float
    fewest: int
    most: int
    linear: bool = False

    def of(self, tokens: int) -> float:
        """The shift of an image of so many patches. Raises `InvalidInput` where it is none."""
        slope = (self.greatest - self.least) / (self.most - self.fewest)
        mu = self.least + slope * (tokens - self.fewest)
        with np.errstate(over="ignore"):
            shift = mu if self.linear else float(np.exp(mu))
        if not 0 < shift < np.inf:
            raise InvalidInput(f"the model's makers have no noise levels for images of {tokens} patches", param="size")
        return shift


@dataclass(frozen=True, eq=False)
class FlowLevels(NoiseLevels):
    """Noise levels of flow matching. ᾱ_t = α_t² of timesteps 1 … train_steps; `shift` moves levels towards the noise.

    dynamic: where the shift follows the image's size; then `shift` is that of one size, and the training levels have none.
    """

    shift: float = 1.0
    evenly: bool = False  # as `Walked` says
    dynamic: DynamicShift | None = None

    @override
    def remaining(self, steps: int, strength: float) -> int:
        return steps - int(steps - steps * strength)  # rounded up, as diffusers' pipelines of these models do it

    @override
    def of_tokens(self, tokens: int) -> FlowLevels:
        return self if self.dynamic is None else replace(self, shift=self.dynamic.of(tokens))

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
        """σ of the teacher's steps, descending: evenly between two ends, and shifted, as diffusers has it. The ends are those
        of the training levels, which a shift that is not dynamic has moved already, or as `Walked.evenly` says.
        """
        trained = _shifted(1 / len(self.alphas_cumprod), 1.0 if self.dynamic else self.shift)
        last = 1 / solver.teacher_steps if self.evenly else trained
        grid: Floats = np.linspace(1.0, last, solver.teacher_steps)
        return _shifted(grid, self.shift)


def flow_levels(config: Mapping[str, Any], walked: Walked = PLAINLY) -> FlowLevels:
    """Noise levels from the configuration of a `FlowMatchEulerDiscreteScheduler`; those of the size with the least shift, where
    that is dynamic.

    Raises `Unsupported` naming a setting that changes the levels and cannot be expressed.
    """
    full = {**defaults(SCHEDULER), **config}
    for setting, allowed in REFUSED.items():
        if full[setting] not in allowed:
            raise Unsupported(f"{full[setting]!r} in the scheduler config is not supported", param=setting)
    train, shift, dynamic = full["num_train_timesteps"], full["shift"], None
    if not is_whole(train):
        message = f"must be a whole number of at least 1 in the scheduler config, got {train!r}"
        raise Unsupported(message, param="num_train_timesteps")
    if not is_number(shift) or shift <= 0:
        raise Unsupported(f"must be a number above 0 in the scheduler config, got {shift!r}", param="shift")
    if full["use_dynamic_shifting"] not in OFF:
        dynamic = _dynamic(full, walked)
    trained: Floats = _shifted(np.arange(1, train + 1) / train, 1.0 if dynamic else float(shift))
    refusal = ("prediction_type", "flow matching")
    walks = {name: Walk("linspace", 0, refusal=None if name in SOLVERS else refusal) for name in get_args(SolverName)}
    own = float(shift) if dynamic is None else dynamic.of(dynamic.fewest)
    return FlowLevels((1 - trained) ** 2, 1.0, "flow_prediction", walks, shift=own, evenly=walked.evenly, dynamic=dynamic)


def _dynamic(full: Mapping[str, Any], walked: Walked) -> DynamicShift:
    """Raises `Unsupported` naming the setting that makes no dynamic shift."""
    if not walked.by_size:
        message = "in the scheduler config is not supported: this model's pipeline does not tell the scheduler of sizes"
        raise Unsupported(f"{full['use_dynamic_shifting']!r} {message}", param="use_dynamic_shifting")
    kind = full["time_shift_type"]
    if kind not in ("exponential", "linear"):
        raise Unsupported(f"must be exponential or linear in the scheduler config, got {kind!r}", param="time_shift_type")
    for field in ("base_shift", "max_shift"):
        if not is_number(full[field]) or (kind == "linear" and full[field] <= 0):
            what = "a number" + " above 0" * (kind == "linear")
            raise Unsupported(f"must be {what} in the scheduler config, got {full[field]!r}", param=field)
    fewest, most = full["base_image_seq_len"], full["max_image_seq_len"]
    for field in ("base_image_seq_len", "max_image_seq_len"):
        if not is_whole(full[field]):
            message = f"must be a whole number of at least 1 in the scheduler config, got {full[field]!r}"
            raise Unsupported(message, param=field)
    if fewest == most:
        message = f"must be another number than base_image_seq_len ({fewest}) in the scheduler config"
        raise Unsupported(message, param="max_image_seq_len")
    return DynamicShift(float(full["base_shift"]), float(full["max_shift"]), fewest, most, kind == "linear")


def _shifted(sigma: Any, shift: float) -> Any:
    """σ′ = s σ / (1 + (s − 1) σ) (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
