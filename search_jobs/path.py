"""The teacher's path: where its latents are, not only at its own steps but at every noise level between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.fresh_noise import Fresh
from engine.noise import Trajectory
from engine.program import Program
from engine.sampler import guided
from search_jobs.pieces import UNetInPieces

NEAR = 1e-9  # relative: levels closer than this are one level, rounded twice


@dataclass(frozen=True)
class TeacherPath:
    """What the teacher predicted at each of its steps, for n images.

    ratios (steps,): σ/α of its steps, descending. clean, noise (steps, n, c, h, w): the predicted clean latent and noise there.
    end (n, c, h, w): its latents.
    """

    ratios: NDArray[np.float64]
    clean: Tensor
    noise: Tensor
    end: Tensor

    def at(self, alpha: float, sigma: float) -> Tensor:
        """Latents (n, c, h, w) at a level below the first: α x₀ + σ ε of the step that crosses it, or that ends there.

        A DDIM step (arXiv 2010.02502, equation 12) moves along exactly these points, so this is the teacher's own path and
        no interpolation of ours.
        """
        before = -_ratio(alpha, sigma) * (1 + NEAR)  # the step that begins at this very level would clip x₀ once more
        i = max(0, int(np.searchsorted(-self.ratios, before)) - 1)
        return alpha * self.clean[i] + sigma * self.noise[i]

    def tensors(self) -> dict[str, Tensor]:
        """The path as tensors on the CPU, for a file; the inverse of `of`."""
        tensors = {"ratios": torch.as_tensor(self.ratios), "clean": self.clean, "noise": self.noise, "end": self.end}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> TeacherPath:
        """The path that `tensors` gave, on a device."""
        clean, noise, end = (tensors[name].to(device) for name in ("clean", "noise", "end"))
        return cls(tensors["ratios"].numpy(), clean, noise, end)


@torch.inference_mode()
def walk(
    network: Denoiser | UNetInPieces,
    program: Program,
    points: Trajectory,
    noise: Tensor,
    condition: Condition,
    negative: Condition | None,
    guidance: float,
    fresh: Fresh | None = None,
) -> TeacherPath:
    """Run the teacher, a program with only full steps at `points`, and keep its path. Else like `sampler.generate`.

    With a stochastic solver the noise of a step's path is what its next latent has beside α x₀, the fresh noise included.
    """
    scale = torch.full((len(noise),), guidance, device=noise.device)
    doubled = Condition.cat([negative, condition]) if negative is not None else condition
    latent, cleans, noises = program.start * noise, [], []
    for step, alpha, sigma in zip(program.steps, points.alphas.tolist(), points.sigmas.tolist(), strict=True):
        rows = torch.cat([latent, latent]) if negative is not None else latent
        output = network.full(rows, torch.full((len(rows),), step.timestep, device=rows.device), doubled)[0]
        output = guided(output, scale) if negative is not None else output
        clean = step.clean_x * latent + step.clean_m * output
        noises.append((latent - alpha * clean) / sigma)
        cleans.append(clean.clamp(-step.clip, step.clip))
        latent = step.next_x * latent + step.next_m * output + step.next_0 * cleans[-1]
        if step.noise:
            assert fresh is not None, "a stochastic solver takes fresh noise"
            latent = latent + step.noise * fresh(step.lands)
            noises[-1] = (latent - points.alphas[len(cleans)] * cleans[-1]) / points.sigmas[len(cleans)]
    ratios = np.array([_ratio(*level) for level in zip(points.alphas.tolist(), points.sigmas.tolist(), strict=True)])
    return TeacherPath(ratios, torch.stack(cleans), torch.stack(noises), latent)


def _ratio(alpha: float, sigma: float) -> float:
    return sigma / alpha if alpha > 0 else np.inf
