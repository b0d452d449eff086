"""Extrapolations of the deep feature that partial steps reuse, where it drifts from one full step to the next. Of a transformer
that is a residual (`engine.families.transformer`), of which everything here holds as well.

A full step made the feature F, and the partial steps before it reused G. Those after it reuse

    G′ = F + w (F − G),

which is F itself for w = 0, and for w > 0 lies ahead of it, where the partial steps are. G is what a slot holds anyway, and G′
takes its place: an extrapolation takes no memory and no UNet call. Forecasting caches keep the features of several full steps
and extrapolate with weights that follow from the timesteps (TaylorSeer, arXiv 2503.06923) or are fitted (L2P, arXiv
2604.26365); here w is a number for each full step, fitted with its corrections (`search_jobs.fit`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def extrapolated(feature: Tensor, reused: Tensor, weight: Tensor) -> Tensor:
    """What the next partial steps reuse, (n, …), of a full step's feature and what was reused before it; weight (n,).

    Where the weight is 0 that is the feature itself, whatever stands in `reused`.
    """
    weight = weight.to(feature.dtype).view(-1, *(1,) * (feature.ndim - 1))
    return torch.where(weight == 0, feature, feature + weight * (feature - reused))
