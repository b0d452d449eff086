"""What all that runs steps knows of a network, whichever family it is of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.branches import Branches
from engine.condition import Condition
from engine.device import Fence, Lane
from registry.schedule import Branch


class Denoiser(Protocol):
    """A diffusers model that can run in part: full steps keep a feature for each branch asked for, partial ones reuse it."""

    channels_last: bool  # whether features of four dimensions lie in memory as (rows, h, w, c)

    @property
    def module(self) -> nn.Module:
        """diffusers' own, with the weights."""

    @property
    def config(self) -> dict[str, Any]:
        """Its complete configuration, with its class."""
        module: Any = self.module
        return {**module.config, "_class_name": type(module).__name__}

    @property
    def branches(self) -> Branches:
        """How much of it partial steps may compute."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def size_multiple(self) -> int:
        """What height and width of its latents are multiples of."""

    def fence(self) -> Fence:
        """A fence behind every call so far."""

    def lane(self) -> Lane:
        """A new lane of the device, beside these calls."""

    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        """All of it. sample (rows, c, h, w) in any float type, timesteps (rows,), one condition per row.

        Returns the prediction (rows, c, h, w) and, for each branch in `keep` that it has, the feature (rows, …) to reuse.
        """

    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        """The part that a branch computes, on the feature that a full step kept for it. Raises `InvalidInput` for no branch."""
