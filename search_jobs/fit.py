"""Corrections in closed form: the numbers of one step, fitted so that it lands on the teacher's path.

A step is linear in what it has at hand, so the best numbers are a least-squares problem of four unknowns for all elements of
all images at once: no training, no gradient, and no cost when images are generated later. Forecasting caches fit the reuse
of features in the same way (L2P, arXiv 2604.26365); here the solver's own numbers and the guidance scale are fitted as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.program_step import ProgramStep, corrected
from registry.corrections import Correction

RIDGE = 1e-6  # of each unknown's own weight: keeps what the images do not tell at the solver's value
LIMIT = 10.0  # a larger number would be a fit to noise
DIGITS = 6  # of the numbers in a document
EXTRAPOLATIONS = (-0.5, 1.0)  # the least and the most: past 1 an extrapolation would amplify what it got wrong before
SLIGHT = 0.02  # a smaller one is none: it is not worth a call to find out what it does
FEW_DIGITS = 3  # of an extrapolation: more would tell in which order the images' outputs were added up


@dataclass(frozen=True)
class UNetCall:
    """One UNet call, and with it all that the solver's step from here is linear in.

    latent, before, conditional, unconditional (n, c, h, w): the latent that it saw, the clean latent predicted one step before
    (zeros at first), and its outputs; `unconditional` is None without guidance. feature (rows, c', h', w'): of a full step that
    keeps one.
    """

    latent: Tensor
    before: Tensor
    conditional: Tensor
    unconditional: Tensor | None
    feature: Tensor | None

    def advance(self, step: ProgramStep, guidance: float) -> tuple[Tensor, Tensor]:
        """The next latent and the clean latent, by the two equations of `engine.program`."""
        output = self.guided(step.guidance * guidance)
        clean = (step.clean_x * self.latent + step.clean_m * output).clamp(-step.clip, step.clip)
        following = step.next_x * self.latent + step.next_m * output + step.next_0 * clean + step.next_1 * self.before
        return following, clean

    def guided(self, scale: float) -> Tensor:
        """The UNet's output m_∅ + g (m_c − m_∅)."""
        if self.unconditional is None:
            return self.conditional
        return self.unconditional + scale * (self.conditional - self.unconditional)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.latent, self.before, self.conditional, self.unconditional, self.feature)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def fit(step: ProgramStep, call: UNetCall, guidance: float, goal: Tensor) -> Correction:
    """The correction of an uncorrected `step` that minimises the squared distance to `goal` (n, c, h, w).

    Of next_x x + M (m_∅ + κ g (m_c − m_∅)) + next_1 x₀_before the unknowns are next_x, M, κ and next_1; with a = M (1 − κ g)
    and b = M κ g it is linear in them. Where x₀ is clipped, κ stays 1: the step is not linear in it.
    """
    base, _ = call.advance(step, guidance)
    scaled = call.unconditional is not None and math.isinf(step.clip)
    outputs = [call.unconditional, call.conditional] if scaled else [call.guided(guidance)]
    known = [call.latent, *outputs, call.before]
    latent, *of_outputs, before = _least_squares([tensor for tensor in known if tensor is not None], goal - base)
    if not scaled:
        return _correction(1.0, latent, of_outputs[0], before)
    whole = step.next_m + step.next_0 * step.clean_m  # what the next latent takes of m, directly and through x₀
    a, b = of_outputs[0] + whole * (1 - guidance), of_outputs[1] + whole * guidance
    factor = b / (a + b) / guidance if a + b else math.inf
    if abs(factor) > LIMIT:  # the outputs hardly matter at this step
        return Correction()
    return _correction(factor, latent, a + b - whole, before)


def fit_extrapolation(
    step: ProgramStep, plain: UNetCall, tried: UNetCall, weight: float, guidance: float, goal: Tensor
) -> float:
    """The extrapolation by which an uncorrected partial `step` comes closest to `goal` (n, c, h, w), with its best correction.

    plain: the call on the full step's own feature; tried: on one extrapolated with this weight. Along the line between the two
    the outputs are taken as linear; how far to go is then a fifth unknown of `fit`'s problem: with the outputs m and m + d, and
    M what the next latent takes of m, it is the weight of M d.
    """
    step = corrected(step, fit(step, plain, guidance, goal))
    reached, _ = plain.advance(step, guidance)
    outputs, others = plain.guided(step.guidance * guidance), tried.guided(step.guidance * guidance)
    change = (step.next_m + step.next_0 * step.clean_m) * (others - outputs)
    direction = [] if plain.unconditional is None else [plain.conditional - plain.unconditional]
    share, *_ = _least_squares([change, plain.latent, plain.before, outputs, *direction], goal - reached)
    low, high = EXTRAPOLATIONS
    found = round(min(max(share * weight, low), high), FEW_DIGITS) if math.isfinite(share) else 0.0
    return found if abs(found) >= SLIGHT else 0.0


def _least_squares(known: list[Tensor], wanted: Tensor) -> list[float]:
    """Weights w that minimise |Σ w_i known_i − wanted|², in float64; 0 for what is all zeros."""
    columns = torch.stack([tensor.flatten() for tensor in known], dim=1).double()
    gram, right = columns.T @ columns, columns.T @ wanted.flatten().double()
    weight = gram.diagonal()
    ridge = torch.where(weight > 0, RIDGE * weight, torch.ones_like(weight))
    weights: list[float] = torch.linalg.solve(gram + ridge.diag(), right).tolist()
    return weights


def _correction(guidance: float, latent: float, output: float, before: float) -> Correction:
    numbers = (guidance, latent, output, before)
    if not all(abs(number) <= LIMIT for number in numbers):  # not a number, too
        return Correction()
    factor, *added = (round(number, DIGITS) + 0.0 for number in numbers)  # + 0.0: no negative zero in a document
    return Correction(guidance=factor, latent=added[0], output=added[1], before=added[2])
