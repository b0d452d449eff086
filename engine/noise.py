"""Noise levels: what the model was trained on, and the trajectory along which a solver walks them.

Everything is in the variance-preserving frame: a latent at level (α, σ) is x = α x₀ + σ ε with α² + σ² = 1. Solvers that are
written in the variance-exploding frame (Euler, Karras et al. arXiv 2206.00364) see the same latent divided by α, at level σ/α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.config import BUILD_ERRORS, defaults, is_whole, reason
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Solver, Spacing

Prediction = Literal["epsilon", "v_prediction", "sample"]
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


@dataclass(frozen=True)
class NoiseLevels:
    """The model's forward process, and how its makers walk it back.

    alphas_cumprod (train_steps,) is ᾱ_t = α_t². `final_alpha_cumprod` is ᾱ after a DDIM trajectory's last step. `clip` bounds
    the predicted clean latent in DDIM (pixel models). `karras` and `spacing` are the makers' choice; a schedule brings its own.
    """

    alphas_cumprod: Floats
    final_alpha_cumprod: float
    prediction: Prediction
    spacing: Spacing
    steps_offset: int
    clip: float = math.inf
    karras: bool = False
    cosine: bool = False

    def trajectory(self, solver: Solver, timesteps: Sequence[int] | None = None) -> Trajectory:
        """The same points that diffusers' scheduler of that solver visits, or would at these timesteps instead of its own.

        Raises `InvalidInput` for more steps, or a later one, than the model was trained on.
        """
        train = len(self.alphas_cumprod)
        if solver.teacher_steps > train:
            message = f"the model was trained on {train} timesteps, got {solver.teacher_steps}"
            raise InvalidInput(message, param="teacher_steps")
        if timesteps is not None and timesteps[0] >= train:
            raise InvalidInput(f"the limit is {train - 1}, got {timesteps[0]}", param="timesteps")
        grid: Floats = self._grid(solver) if timesteps is None else np.array(timesteps, dtype=np.float64)
        if solver.name == "ddim":
            cumprod = self.alphas_cumprod[grid.astype(np.int64)]
            end = (math.sqrt(self.final_alpha_cumprod), math.sqrt(1 - self.final_alpha_cumprod))
            return Trajectory(grid, np.sqrt(cumprod), np.sqrt(1 - cumprod), end, start=1.0)
        levels = self._exploding()
        ratios: Floats = np.interp(grid, np.arange(train), levels)
        if solver.karras:
            first, last = (ratios[0], ratios[-1]) if solver.name == "euler" else (levels[-1], levels[0])
            ratios = _karras(first, last, solver.teacher_steps)
            grid = np.interp(np.log(ratios), np.log(levels), np.arange(train))
            if solver.name == "dpmsolver++":  # shows the UNet whole timesteps
                grid = np.trunc(grid) if self.cosine else grid.round()
        alphas = 1 / np.sqrt(1 + ratios**2)
        # Euler's scheduler starts at the level itself, except for leading, where it adds the signal's share of variance.
        start = float(ratios[0] * alphas[0]) if solver.name == "euler" and solver.spacing != "leading" else 1.0
        return Trajectory(grid, alphas, ratios * alphas, (1.0, 0.0), start)

    def _grid(self, solver: Solver) -> Floats:
        """The teacher's timesteps, descending, (steps,) (arXiv 2305.08891, table 2)."""
        train, steps = len(self.alphas_cumprod), solver.teacher_steps
        multistep = solver.name == "dpmsolver++"  # whose scheduler leaves out one end of the grid
        grid: Floats
        if solver.spacing == "linspace":
            grid = np.linspace(0, train - 1, steps + multistep)[::-1][:steps]
            grid = grid if solver.name == "euler" else grid.round()
        elif solver.spacing == "leading":
            ratio = train // (steps + multistep)
            grid = (np.arange(steps + multistep) * ratio)[::-1][:steps] + float(self.steps_offset)
        else:
            grid = np.arange(train, 0, -train / steps).round()[:steps] - 1
        return np.clip(grid, 0, train - 1)

    def _exploding(self) -> Floats:
        """σ/α of every training timestep, ascending."""
        cumprod = np.where(self.alphas_cumprod == 0, ALMOST_ZERO, self.alphas_cumprod)
        levels: Floats = np.sqrt((1 - cumprod) / cumprod)
        return levels


def _karras(first: float, last: float, steps: int) -> Floats:
    """σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ (arXiv 2206.00364, equation 5), (steps,)."""
    ramp: Floats = np.linspace(first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO), steps) ** KARRAS_RHO
    return ramp


# Settings that change the noise levels or the update, and the values of them that can be expressed.
REFUSED: dict[str, tuple[object, ...]] = {
    "thresholding": (None, False),
    "use_exponential_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "use_flow_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "interpolation_type": (None, "linear"),
    "timestep_type": (None, "discrete"),
    "final_sigmas_type": (None, "zero"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "lambda_min_clipped": (None, -math.inf, "-inf", "-Infinity"),
    "predict_epsilon": (None, True),  # of old configurations
    "prediction_type": get_args(Prediction),
    "timestep_spacing": get_args(Spacing),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}


def noise_levels(config: dict[str, Any]) -> NoiseLevels:
    """Noise levels from a diffusers scheduler's configuration, whichever scheduler wrote it.

    What is missing in it has the default of the class that wrote it (DDIM's if it does not say which, but without clipping).

    Settings that only choose another solver (`algorithm_type`, `solver_order`, `variance_type`, …) are left out: the schedule
    chooses. Raises `Unsupported` naming a setting that changes the noise levels or the update and cannot be expressed.
    """
    from diffusers import DDIMScheduler

    ours = defaults("DDIMScheduler") | {"clip_sample": False}
    writer = _writer(config["_class_name"]) if "_class_name" in config else None
    full = {**ours, **(defaults(writer.__name__) if writer else {}), **config}
    for setting, allowed in REFUSED.items():
        if full.get(setting) not in allowed:
            raise Unsupported(f"{full[setting]!r} in the scheduler config is not supported", param=setting)
    _refuse_numbers(full)
    try:
        scheduler = DDIMScheduler(**{name: full[name] for name in ours})
        cumprod: Floats = scheduler.alphas_cumprod.numpy().astype(np.float64)
        final = float(scheduler.final_alpha_cumprod)
        theirs = writer.from_config(config).alphas_cumprod.numpy() if writer else cumprod
    except BUILD_ERRORS as error:
        raise Unsupported(f"diffusers cannot build it: {reason(error)}", param="scheduler") from error
    if not (cumprod[0] < 1 and np.all(np.diff(cumprod) < 0)):
        setting = "beta_start" if full["trained_betas"] is None else "trained_betas"
        raise Unsupported("the signal must fall at every timestep, and it does not", param=setting)
    if writer is not None and not np.allclose(cumprod, theirs, rtol=0, atol=1e-6):
        raise Unsupported(f"{writer.__name__} has noise levels of its own", param="scheduler")
    return NoiseLevels(
        alphas_cumprod=cumprod,
        final_alpha_cumprod=final,
        prediction=full["prediction_type"],
        spacing=full["timestep_spacing"],
        steps_offset=full["steps_offset"],
        clip=float(full["clip_sample_range"]) if full["clip_sample"] else math.inf,
        karras=bool(full.get("use_karras_sigmas")),
        cosine=full["beta_schedule"] == "squaredcos_cap_v2",
    )


def _writer(name: object) -> Any:
    """The diffusers scheduler of that name. Raises `Unsupported` for one whose noise levels do not come from betas."""
    import diffusers

    writer = getattr(diffusers, name, None) if isinstance(name, str) else None
    if isinstance(writer, type) and name and "beta_schedule" in defaults(str(name)):
        return writer
    raise Unsupported(
        f"_class_name {name!r} in its config: this version runs schedulers with a beta_schedule", param="scheduler"
    )


def _refuse_numbers(full: dict[str, Any]) -> None:
    """Raises `Unsupported` naming a setting that must be a number, or a list of numbers, and is none that can be used."""
    limits: dict[str, tuple[bool, str]] = {
        "num_train_timesteps": (is_whole(full["num_train_timesteps"]), "a whole number of at least 1"),
        "steps_offset": (is_whole(full["steps_offset"]) or full["steps_offset"] == 0, "a whole number of at least 0"),
    }
    betas = full["trained_betas"]
    if betas is not None:
        good = isinstance(betas, list | tuple) and bool(betas) and all(_is_between(b, 1) or b == 1 for b in betas)
        limits["trained_betas"] = (good, "a list of numbers between 0 and 1, or null")
    elif full["beta_schedule"] != "squaredcos_cap_v2":
        for setting in ("beta_start", "beta_end"):
            limits[setting] = (_is_between(full[setting], 1), "a number between 0 and 1")
    if full["clip_sample"]:
        limits["clip_sample_range"] = (_is_between(full["clip_sample_range"], math.inf), "a number above 0")
    for setting, (good, wanted) in limits.items():
        if not good:
            raise Unsupported(f"must be {wanted} in the scheduler config, got {full[setting]!r}", param=setting)


def _is_between(value: object, end: float) -> bool:
    """Whether this is a number between 0 and `end`, neither of them included."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < end
