"""The update rules of the solvers, as the numbers of `engine.program`'s two equations."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.noise import NoiseLevels, Prediction, Trajectory
from registry.schedule import Solver

SIGMA_DATA = 0.5  # of latent consistency models: how far images spread


class Update(NamedTuple):
    """The numbers of the second equation, and of the fresh noise."""

    next_x: float
    next_m: float
    next_0: float
    next_1: float
    noise: float = 0.0


def updates_of(solver: Solver, levels: NoiseLevels, path: Trajectory) -> list[Update]:
    """One for each point of the path."""
    if solver.name == "dpmsolver++":
        return _dpmsolver_2m(path)
    if solver.name == "lcm":
        return _consistency(path, levels.walks["lcm"].boundary)
    return _ddim(path, levels.prediction, ancestral=solver.name == "euler-ancestral")


def clean_of(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """x₀ from x and the network's output m: ε-prediction (x − σm)/α; v-prediction αx − σm (arXiv 2202.00512); sample m; of flow
    matching, whose m is ε − x₀, x − σm.
    """
    if prediction == "flow_prediction":
        return 1.0, -sigma
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    return (alpha, -sigma) if prediction == "v_prediction" else (0.0, 1.0)


def _noise(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """ε from x and the network's output m: ε-prediction m; v-prediction σx + αm; sample (x − αm)/σ; flow matching x + αm."""
    if prediction == "flow_prediction":
        return 1.0, alpha
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
    where x′ = x₀. From pure noise, λ = −∞, φ is α′, and the step after it is first order too: 1/2r is 0.
    """
    alphas, sigmas = path.alphas.tolist(), path.sigmas.tolist()
    with np.errstate(divide="ignore"):
        lambdas = np.log(path.alphas / path.sigmas).tolist()
    updates = []
    for i in range(len(lambdas) - 1):
        h = lambdas[i + 1] - lambdas[i]
        phi = -alphas[i + 1] * math.expm1(-h)
        half = 0.0 if i == 0 else 0.5 * h / (lambdas[i] - lambdas[i - 1])
        updates.append(Update(sigmas[i + 1] / sigmas[i], 0.0, phi * (1.0 + half), -phi * half))
    return [*updates, Update(0.0, 0.0, 1.0, 0.0)]
