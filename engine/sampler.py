"""The plain loop: one schedule, one batch. Short on purpose; it is the oracle of `waves.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.extrapolation import extrapolated
from engine.fresh_noise import Fresh
from engine.program import Program
from engine.source import EncodedSource


def guided(rows: Tensor, guidance: Tensor) -> Tensor:
    """Classifier-free guidance, m = m_∅ + g(m_c − m_∅) (arXiv 2207.12598).

    rows (2n, c, h, w): the UNet's outputs, unconditional first; guidance (n,). Returns (n, c, h, w).
    """
    unconditional, conditional = rows.chunk(2)
    return unconditional + guidance.view(-1, 1, 1, 1) * (conditional - unconditional)


@torch.inference_mode()
def generate(
    network: Denoiser,
    program: Program,
    noise: Tensor,
    condition: Condition,
    negative: Condition | None = None,
    guidance: float = 1.0,
    fresh: Fresh | None = None,
    source: EncodedSource | None = None,
) -> Tensor:
    """Denoise unit noise (n, c, h, w) by one program, or the images' sources noised with it. One condition per image.

    Returns latents (n, c, h, w).

    With `negative` every UNet call has 2n rows: unconditional first, then conditional. Without, guidance is 1, or is in the
    condition. fresh: the images' noises (n, c, h, w) by place, for a program of a stochastic solver.
    """
    double = negative is not None
    condition = Condition.cat([negative, condition]) if negative is not None else condition
    scale = torch.full((len(noise),), guidance, dtype=noise.dtype, device=noise.device)
    latent, before, feature = program.begin(noise, source), torch.zeros_like(noise), torch.empty(0)
    for step in program.at(guidance).steps:
        rows = torch.cat([latent, latent]) if double else latent
        timesteps = torch.full((len(rows),), step.timestep, device=rows.device)
        if step.kind == "full":
            output, kept = network.full(rows, timesteps, condition, keep={step.branch})
            if step.extrapolation:
                weight = torch.full((len(rows),), step.extrapolation, device=rows.device)
                kept[step.branch] = extrapolated(kept[step.branch], feature, weight)
            feature = kept.get(step.branch, feature)
        else:
            output = network.partial(rows, timesteps, condition, step.branch, feature)
        output = guided(output, step.guidance * scale) if double else output
        clean = (step.clean_x * latent + step.clean_m * output).clamp(-step.clip, step.clip)
        latent = step.next_x * latent + step.next_m * output + step.next_0 * clean + step.next_1 * before
        before = clean
        if step.noise:
            assert fresh is not None, "a stochastic solver takes fresh noise"
            latent = latent + step.noise * fresh(step.lands)
        if source is not None and source.kept is not None:
            latent = torch.where(source.kept, step.signal * source.latent + step.sigma * noise, latent)
    return latent
