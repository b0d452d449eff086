"""Networks whose partial steps reuse a forecast, not the last full step's feature; the loop around them is the usual one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.forecast.forecasts import Weights, most
from engine.branches import Branches
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.device import Fence, Lane
from registry.schedule import Branch

RIDGE = 1e-6  # of each unknown's own weight
DIGITS = 6  # of fitted weights


class Forecasting(Denoiser):
    """A network for the images of one schedule, walked by nothing else meanwhile. A full step at no lower timestep begins anew.

    It keeps the features of as many full steps as the forecast takes, whatever the loop hands it: a schedule has one branch.
    """

    def __init__(self, network: Denoiser, weights: Weights) -> None:
        self.network, self.weights, self.most = network, weights, most(weights)
        self.channels_last = network.channels_last
        self.features, self.position, self.last = list[Tensor](), 0, -1.0

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        output, kept = self.network.full(sample, timesteps, condition, keep)
        timestep = float(timesteps[0])
        if timestep >= self.last:
            self.features, self.position = [], 0
        self.last = timestep
        if len(kept) > 1:
            raise ValueError("a forecast is of the features of one branch")
        self.features = [*kept.values(), *self.features][: self.most]
        return output, kept

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        weights = self.weights_of(sample, timesteps, condition, branch)
        self.position += 1
        forecast = sum(weight * feature for weight, feature in zip(weights, self.features, strict=True))
        assert isinstance(forecast, Tensor), "a full step comes first"
        return self.network.partial(sample, timesteps, condition, branch, forecast.to(feature.dtype))

    def weights_of(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch) -> Sequence[float]:
        """Of the features that are there, at the next partial step."""
        return self.weights[self.position]

    @property
    @override
    def module(self) -> nn.Module:
        return self.network.module

    @property
    @override
    def config(self) -> dict[str, Any]:
        return self.network.config

    @property
    @override
    def branches(self) -> Branches:
        return self.network.branches

    @property
    @override
    def device(self) -> torch.device:
        return self.network.device

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    @override
    def size_multiple(self) -> int:
        return self.network.size_multiple

    @override
    def fence(self) -> Fence:
        return self.network.fence()

    @override
    def lane(self) -> Lane:
        return self.network.lane()


class Fitting(Forecasting):
    """Finds the weights of a forecast of so many features while a schedule runs, once: at each partial step those that come
    nearest to the feature that a full step would make there, for all rows together."""

    def __init__(self, network: Denoiser, features: int) -> None:
        super().__init__(network, ())
        self.most, self.found = features, list[tuple[float, ...]]()

    @override
    def weights_of(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch) -> Sequence[float]:
        _, wanted = self.network.full(sample, timesteps, condition, keep={branch})
        self.found.append(nearest(self.features, wanted[branch]))
        return self.found[-1]


def nearest(features: Sequence[Tensor], wanted: Tensor) -> tuple[float, ...]:
    """The weights of features, any shape, whose sum comes nearest to a wanted one, in float64.

    The unknowns are of backward differences, for the features themselves are nearly alike.
    """
    differences = _differences(len(features))
    columns = torch.stack([feature.flatten().double() for feature in features], dim=1) @ differences
    gram, right = columns.T @ columns, columns.T @ wanted.flatten().double()
    ridge = RIDGE * gram.diagonal() + torch.finfo(torch.float64).tiny
    solved = differences @ torch.linalg.solve(gram + ridge.diag(), right)
    return tuple(round(weight, DIGITS) for weight in solved.tolist())


def _differences(count: int) -> Tensor:
    """(count, count): in each column what a backward difference takes of the features, the one of order 0 first."""
    rows = [[1.0, *[0.0] * (count - 1)]]
    for _ in range(count - 1):
        rows.append([1.0, *(after - before for after, before in zip(rows[-1][1:], rows[-1], strict=False))])
    return torch.tensor(rows, dtype=torch.float64).T
