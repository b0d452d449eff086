"""A schedule compiled for a solver: the steps that are really computed, each with a few numbers.

Every supported solver is linear in the current latent x, the UNet's output m, the predicted clean latent x₀ and the x₀ of the
step before. With signal α and noise σ (α² + σ² = 1, x = α x₀ + σ ε), one step is

    x₀  = clamp(clean_x · x + clean_m · m, ±clip)      m: epsilon, v or sample prediction
    x′  = next_x · x + next_m · m + next_0 · x₀ + next_1 · x₀_before

so images with different schedules, solvers and positions can share one UNet call. All numbers are float64, computed once. A
schedule's corrections are added to them, one multiplies the guidance scale of the step, one extrapolates its deep feature. A
stochastic solver adds fresh unit noise z to what it comes to, x′ + noise · z: the image's own, of the place where the step
lands (`engine.fresh_noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from engine.image_size import ImageSize
from engine.noise import NoiseLevels, Prediction, Trajectory
from registry.corrections import Correction
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Schedule

SCALES_KEPT = 64  # of guidance, whose corrected steps a program remembers
SIGMA_DATA = 0.5  # of latent consistency models: how far images spread


class Need(NamedTuple):
    """What a step asks of the UNet: ("full", 0) or ("partial", branch), at a size of images; None is the model's own.

    `chunks`: of the context, as long prompts take several. Images whose next steps need the same share a call.
    """

    kind: str
    branch: int
    size: ImageSize | None = None
    chunks: int = 1

    def at(self, size: ImageSize | None, chunks: int = 1) -> Need:
        """The same at a size, with so many chunks of context."""
        return self._replace(size=size, chunks=chunks)


@dataclass(frozen=True)
class ProgramStep:
    """One computed step.

    `index` is its place in the teacher's trajectory; a full step's `branch` says which feature to keep for the partial steps
    after it (0: none), `extrapolation` is the weight with which that is extrapolated (`engine.extrapolation`). The numbers are
    those of the module's two equations; `guidance` is a factor on the request's guidance scale; `noise` is that of the fresh
    noise that is added, and `lands` the place in the teacher's trajectory whose it is.
    """

    index: int
    kind: Literal["full", "partial"]
    branch: int
    timestep: float
    clean_x: float
    clean_m: float
    clip: float
    next_x: float
    next_m: float
    next_0: float
    next_1: float
    guidance: float = 1.0
    extrapolation: float = 0.0
    noise: float = 0.0
    lands: int = 0

    @cached_property
    def need(self) -> Need:
        """The kind of UNet call that can run this step."""
        return Need("full", 0) if self.kind == "full" else Need("partial", self.branch)

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Those of the equations, after the timestep: clean_x, clean_m, clip, next_x, next_m, next_0, next_1."""
        solver = (self.clean_x, self.clean_m, self.clip, self.next_x, self.next_m, self.next_0, self.next_1)
        return (self.timestep, *solver)


@dataclass(frozen=True)
class Program:
    """What one image of `schedule` runs, in order, from `start` times unit noise. Null steps are left out: the solver jumps.

    `steps` hold the schedule's corrections where they are the same at all guidance scales; else `at` a scale gives them.
    """

    schedule: Schedule
    steps: tuple[ProgramStep, ...]
    start: float
    scale: float | None = None  # whose corrections the steps hold, where they depend on it

    def at(self, guidance: float) -> Program:
        """The program of images of this scale; of a program at a scale, that program itself."""
        if self.schedule.scaled_corrections is None or self.scale is not None:
            return self
        return self._scaled(guidance)

    @cached_property
    def _scaled(self) -> Callable[[float], Program]:
        """`at`, which remembers: clients ask for few scales, and threads may ask together."""

        @lru_cache(SCALES_KEPT)
        def program(guidance: float) -> Program:
            corrections = self.schedule.corrections_at(guidance) or ()
            steps = tuple(corrected(step, by) for step, by in zip(self.steps, corrections, strict=True))
            return Program(self.schedule, steps, self.start, guidance)

        return program


def compile_program(schedule: Schedule, levels: NoiseLevels, branches: int) -> Program:
    """Compile for a model with these noise levels whose UNet has `branches` branches.

    Raises `InvalidInput` when a segment's branch is past the UNet's last one or the solver does not fit the model.
    """
    for i, segment in enumerate(schedule.segments):
        if segment.branch > branches:
            raise InvalidInput(
                f"this UNet has branches 1 to {branches}, got {segment.branch}",
                param=f"segments.{i}.branch",
            )
    visited = [step for step in schedule.steps() if step.kind != "null"]
    path = path_of(schedule, levels)
    if (np.diff(path.alphas) <= 0).any():
        raise InvalidInput("the trajectory visits a noise level twice", param="teacher_steps")
    if levels.prediction == "epsilon" and path.alphas[0] == 0:
        raise Unsupported("epsilon says nothing at a level without signal (zero terminal SNR)", param="prediction_type")
    if schedule.solver.clip and not levels.clips:
        raise InvalidInput("the makers of this model bound no clean latents; take it away", param="solver.clip")
    # In diffusers DDIM and LCM clip as the makers say, DPM-Solver++ where it is asked to, and no other.
    clip = levels.clip if schedule.solver.name in ("ddim", "lcm") or schedule.solver.clip else math.inf
    if schedule.solver.name == "dpmsolver++":
        updates = _dpmsolver_2m(path)
    elif schedule.solver.name == "lcm":
        updates = _consistency(path, levels.walks["lcm"].boundary)
    else:
        updates = _ddim(path, levels.prediction, ancestral=schedule.solver.name == "euler-ancestral")
    corrections = schedule.corrections or (Correction(),) * len(visited)  # those by scale: `Program.at`
    steps = []
    points = zip(path.timesteps.tolist(), path.alphas.tolist(), path.sigmas.tolist(), strict=True)
    lands = [*(step.index for step in visited[1:]), schedule.solver.teacher_steps]
    for step, (timestep, *level), update, correction, place in zip(visited, points, updates, corrections, lands, strict=True):
        segment = schedule.segments[step.index // schedule.length]
        branch = segment.branch if segment.partial else 0
        clean = _clean(levels.prediction, *level)
        plain = ProgramStep(
            step.index,
            step.kind,  # type: ignore[arg-type]  # null was filtered
            branch,
            timestep,
            *clean,
            clip,
            *update[:4],
            noise=update.noise,
            lands=place,
        )
        steps.append(corrected(plain, correction))
    return Program(schedule, tuple(steps), path.start)


def path_of(schedule: Schedule, levels: NoiseLevels) -> Trajectory:
    """The points that the schedule computes: those of its solver's trajectory that are not null, or its own timesteps."""
    whole = levels.trajectory(schedule.solver, schedule.timesteps)
    if schedule.timesteps is not None:
        return whole
    return whole.at([step.index for step in schedule.steps() if step.kind != "null"])


def corrected(step: ProgramStep, by: Correction) -> ProgramStep:
    """The step with a schedule's correction in its numbers."""
    return replace(
        step,
        next_x=step.next_x + by.latent,
        next_m=step.next_m + by.output,
        next_1=step.next_1 + by.before,
        guidance=by.guidance,
        extrapolation=by.extrapolation,
    )


class Update(NamedTuple):
    """The numbers of the module's second equation, and of the fresh noise."""

    next_x: float
    next_m: float
    next_0: float
    next_1: float
    noise: float = 0.0


def _clean(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """x₀ from x and the UNet's output m: ε-prediction (x − σm)/α; v-prediction αx − σm (arXiv 2202.00512); sample m."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    return (alpha, -sigma) if prediction == "v_prediction" else (0.0, 1.0)


def _noise(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """ε from x and the UNet's output m: ε-prediction m; v-prediction σx + αm; sample (x − αm)/σ."""
    if prediction == "epsilon":
        return 0.0, 1.0
    return (sigma, alpha) if prediction == "v_prediction" else (1 / sigma, -alpha / sigma)


def _ddim(path: Trajectory, prediction: Prediction, ancestral: bool = False) -> list[Update]:
    """Deterministic DDIM (arXiv 2010.02502, equation 12, η = 0): x′ = α′ x₀ + σ′ ε.

    A jump of any length is the same equation with the next visited level. Only x₀ is clipped, ε is not, as in diffusers.
    Euler's step x̃′ = x̃ + (σ̃′ − σ̃) ε in the exploding frame, x̃ = x/α and σ̃ = σ/α, is the same: x̃ = x₀ + σ̃ ε, so
    x̃′ = x₀ + σ̃′ ε, and x′ = α′ x̃′ = α′ x₀ + σ′ ε. Its trajectory differs, its update does not.
    `ancestral` goes further down and up again with fresh noise (Karras et al. arXiv 2206.00364, section 4, as k-diffusion has
    it): of σ′ the share s = σ̃′/σ̃ stays the predicted noise, √(1 − s²) is fresh.
    """
    levels = [*zip(path.alphas.tolist(), path.sigmas.tolist(), strict=True), path.end]
    updates = []
    for level, (alpha_next, sigma_next) in pairwise(levels):
        noise_x, noise_m = _noise(prediction, *level)
        share = sigma_next / alpha_next * level[0] / level[1] if ancestral else 1.0
        kept, fresh = share * sigma_next, math.sqrt(1 - share**2) * sigma_next
        updates.append(Update(kept * noise_x, kept * noise_m, alpha_next, 0.0, fresh))
    return updates


def _consistency(path: Trajectory, boundary: float) -> list[Update]:
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3): x′ = α′ f + σ′ z, and f itself at the end.

    f = c_skip x + c_out x₀ is the consistency function. With τ = `boundary` · timestep and σ_data = ½,
    c_skip = σ_data²/(τ² + σ_data²) and c_out = τ/√(τ² + σ_data²) (appendix C of it).
    """
    levels = [*zip(path.alphas.tolist()[1:], path.sigmas.tolist()[1:], strict=True), path.end]
    updates = []
    for timestep, (alpha_next, sigma_next) in zip(path.timesteps.tolist(), levels, strict=True):
        scaled = boundary * timestep
        skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / math.hypot(scaled, SIGMA_DATA)
        updates.append(Update(alpha_next * skip, 0.0, alpha_next * out, 0.0, sigma_next))
    return updates


def _dpmsolver_2m(path: Trajectory) -> list[Update]:
    """DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2).

    With λ = ln(α/σ), h = λ′ − λ, r = (λ − λ_before)/h, φ = −α′(e^{−h} − 1):
    x′ = (σ′/σ)x + φ(1 + 1/2r)x₀ − (φ/2r)x₀_before.  The first step and the last are first order; the last goes to σ′ = 0,
    where x′ = x₀.
    """
    alphas, sigmas = path.alphas.tolist(), path.sigmas.tolist()
    lambdas = np.log(path.alphas / path.sigmas).tolist()
    updates = []
    for i in range(len(lambdas) - 1):
        h = lambdas[i + 1] - lambdas[i]
        phi = -alphas[i + 1] * math.expm1(-h)
        half = 0.0 if i == 0 else 0.5 * h / (lambdas[i] - lambdas[i - 1])
        updates.append(Update(sigmas[i + 1] / sigmas[i], 0.0, phi * (1.0 + half), -phi * half))
    return [*updates, Update(0.0, 0.0, 1.0, 0.0)]
