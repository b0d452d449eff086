"""The timesteps at which so many computed steps follow the teacher's path best, found without making an image.

A corrected step from the teacher's latent x_i, with the clean latent x₀_i predicted there and the one x₀_p predicted at the
computed step before, lands on the combination of the three that is nearest to the teacher's latent x_j: corrections are fitted
so (`search_jobs.fit`; where x₀ is clipped, the clipped one counts as the solver has it, and with guidance a fit has one number
more, so that the error is an upper bound). What is left of the distance is the step's local error, and with it a share of what
the step takes of its predictions: two that are close together would be taken hundreds of times, which no fit does. It needs
inner products of what the teacher's path holds, and no network. The sum of the steps' errors is smallest on the shortest way
through the pairs (p, i), which dynamic programming finds exactly.

Watson et al. (arXiv 2106.03802) choose timesteps so by the terms of a bound on the likelihood, GITS (arXiv 2405.11326) and OSS
(arXiv 2503.21774) by the errors of a solver's own steps, which are known as well; a search's steps are the corrected ones, of
two predictions each. A partial step counts as if it were full: how its output differs is for the search to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.noise import Floats, NoiseLevels, Trajectory
from registry.schedule import SolverName
from search_jobs.fit import RIDGE
from search_jobs.path import TeacherPath

OFF = 1e-6  # squared, relative: how far predictions are taken to be from the path's, where corrected steps are made of them
FAINT = 1e-9  # signal that counts as some: pure noise has none, and no step lands there
MOST_POINTS = 64  # of the teacher's steps are tried, at even distances where it has more: errors take the cube of them


@dataclass(frozen=True, eq=False)
class BestTimesteps:
    """Local errors of steps along a teacher's path through n points, and the best choice of so many of them.

    timesteps (n,): of the points, descending. signal (n + 1,): α² / (α² + σ²) there, and of the end. errors (n + 1, n, n + 1):
    at [p + 1, i, j] the squared error of a step from point i to j (n: the end), with the computed step before at p (−1: none);
    in units of latents of unit variance, a mean over their elements. Infinite unless p < i < j.
    """

    timesteps: Sequence[int]
    signal: Floats
    errors: Floats
    _known: dict[tuple[int, float], tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, path: TeacherPath, points: Trajectory, start: Tensor, levels: NoiseLevels, solver: SolverName | None = None
    ) -> BestTimesteps:
        """Of the path that a teacher took through these points of its levels.

        start (n, c, h, w): its latents at the first of them. solver: whose own steps they are, DDIM's (or Euler's, which are
        the same) or DPM-Solver++'s; None for corrected steps.
        """
        chosen = np.unique(np.linspace(0, len(points.timesteps) - 1, MOST_POINTS).round().astype(int))
        inner, points = _inner_products(path, points, start, chosen), points.at(chosen.tolist())
        alphas, sigmas = (np.append(some, end) for some, end in zip((points.alphas, points.sigmas), points.end, strict=True))
        if solver is None:
            errors = _fitted(inner, alphas, levels.clips)
        else:
            errors = (_second_order if solver == "dpmsolver++" else _first_order)(inner, alphas, sigmas)
        total = alphas**2 + sigmas**2
        timesteps = [max(round(timestep), levels.first_timestep) for timestep in points.timesteps.tolist()]
        return cls(timesteps, alphas**2 / total, errors / total)

    def chosen(self, count: int, late: float) -> tuple[int, ...] | None:
        """`count` of the timesteps, the first of them included; None where there are not so many.

        late: a step's error counts signal^late times, by where it lands. At 0 all count alike; the larger it is, the more those
        with little noise left do, as networks mend what went wrong before; below 0 those do that decide what an image becomes.
        """
        points = len(self.timesteps)
        if not 1 <= count <= points:
            return None
        if (count, late) not in self._known:  # as many different steps ask for as many timesteps
            self._known[count, late] = self._shortest(count, late)
        return self._known[count, late]

    def _shortest(self, count: int, late: float) -> tuple[int, ...]:
        points = len(self.timesteps)
        weighted = self.errors * np.maximum(self.signal, FAINT) ** late
        best = np.full((points + 1, points), np.inf)  # the least sum on a way whose last two steps are (before, at)
        best[0, 0] = 0
        ways: list[NDArray[np.intp]] = []
        for _ in range(count - 1):
            sums = best[:, :, None] + weighted[:, :, :points]  # before, at, next
            ways.append(sums.argmin(axis=0))
            best = np.vstack([np.full((1, points), np.inf), sums.min(axis=0)])
        before, at = np.unravel_index((best + weighted[:, :, points]).argmin(), best.shape)
        steps = [int(at)]
        for way in reversed(ways):
            before, at = way[before - 1, at], before - 1
            steps.append(int(at))
        return tuple(self.timesteps[step] for step in reversed(steps))


def _inner_products(path: TeacherPath, points: Trajectory, start: Tensor, chosen: NDArray[np.intp]) -> Floats:
    """Means over elements of products of the path's tensors: latents at the chosen points, clean latents there, and the end."""
    total: Any = 0
    for image in range(path.end.shape[0]):  # one at a time: in float64 all of them would be large
        clean, noise = (some[:, image].flatten(1).double() for some in (path.clean, path.noise))
        alphas, sigmas = (torch.as_tensor(some, device=clean.device)[:, None] for some in (points.alphas, points.sigmas))
        first = start[image].flatten()[None].double()
        latents = torch.cat([first, alphas[1:] * clean[:-1] + sigmas[1:] * noise[:-1]])
        rows = torch.cat([latents[chosen], clean[chosen], noise[chosen], path.end[image].flatten()[None].double()])
        total = total + rows @ rows.T
    products: Floats = (total / path.end.numel()).cpu().numpy()
    return products


def _fitted(inner: Floats, alphas: Floats, clips: bool) -> Floats:
    """Errors (n + 1, n, n + 1) of the best linear steps: what they leave of each target, and what predictions are off."""
    points = len(alphas) - 1
    errors = np.full((points + 1, points, points + 1), np.inf)
    for before in range(-1, points):
        for at in range(before + 1, points):
            known = [at, (2 * points if clips else points) + at] + [points + before] * (before >= 0)
            targets = [*range(at + 1, points), 3 * points]
            kept = alphas[None, at + 1 :] * clips  # a clipped clean latent counts as the solver has it
            within, weight = inner[np.ix_(known, known)], inner.diagonal()[known]
            across = inner[np.ix_(known, targets)] - inner[np.ix_(known, [points + at])] * kept
            weights = np.linalg.solve(within + np.diag(np.where(weight > 0, RIDGE * weight, 1)), across)
            off = OFF * (weights[1:] ** 2 * weight[1:, None]).sum(0)
            errors[before + 1, at, at + 1 :] = _left(inner, [*known, points + at], targets, np.vstack([weights, kept])) + off
    return errors


def _first_order(inner: Floats, alphas: Floats, sigmas: Floats) -> Floats:
    """Errors (n + 1, n, n + 1) of DDIM's steps (arXiv 2010.02502, equation 12), whatever was before."""
    points = len(alphas) - 1
    errors = np.full((points + 1, points, points + 1), np.inf)
    for at in range(points):
        targets = [*range(at + 1, points), 3 * points]
        weights = np.stack([alphas[at + 1 :], sigmas[at + 1 :]])
        errors[: at + 1, at, at + 1 :] = _left(inner, [points + at, 2 * points + at], targets, weights)
    return errors


def _second_order(inner: Floats, alphas: Floats, sigmas: Floats) -> Floats:
    """Errors (n + 1, n, n + 1) of the steps of DPM-Solver++(2M), as `engine.solvers` has them; the last ends at x₀."""
    points = len(alphas) - 1
    errors = np.full((points + 1, points, points + 1), np.inf)
    with np.errstate(divide="ignore"):
        lambdas = np.log(alphas[:-1] / sigmas[:-1])
    for before in range(-1, points):
        for at in range(before + 1, points):
            known = [at, points + at] + [points + before] * (before >= 0)
            step = lambdas[at + 1 :] - lambdas[at]
            phi = -alphas[at + 1 : -1] * np.expm1(-step)
            half = 0.5 * step / (lambdas[at] - lambdas[before]) if before >= 0 and np.isfinite(lambdas[before]) else 0 * phi
            to_end = np.array([0.0, 1.0, 0.0])
            weights = np.stack([sigmas[at + 1 : -1] / sigmas[at], phi * (1 + half), -phi * half])
            weights = np.column_stack([weights, to_end])[: len(known)]
            errors[before + 1, at, at + 1 :] = _left(inner, known, [*range(at + 1, points), 3 * points], weights)
    return errors


def _left(inner: Floats, known: Sequence[int], targets: Sequence[int], weights: Floats) -> Floats:
    """The mean squares of targets less what the weights (known, targets) make of the known."""
    within, across = inner[np.ix_(known, known)], inner[np.ix_(known, targets)]
    made = 2 * (weights * across).sum(0) - (weights * (within @ weights)).sum(0)
    left: Floats = np.maximum(inner.diagonal()[list(targets)] - made, 0)
    return left
