"""The noises of an image: the one that it begins with, and those that stochastic solvers add on the way.

All of them follow from its seed, so its pixels do: in any company, on any device, however often a step is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from engine.device import to_device

Fresh: TypeAlias = Callable[[int], Tensor]  # place in the teacher's trajectory -> unit noise, of one image or of several


class FreshNoise:
    """The unit noises of a seed, (c, h, w), float32: of place 0, with which its image begins, and of all later places.

    They are drawn on the CPU one after the other, as diffusers' pipelines draw them from a generator of this seed. A place that
    a schedule jumps over keeps its noise: an image arrives at a place with the teacher's noise of that place.
    """

    def __init__(self, seed: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self._seed, self._shape, self._device = seed, shape, device
        self._generator = torch.Generator("cpu")
        self._next = 0  # whose place is drawn next; the noise before it is kept
        self._noise = torch.empty(0)

    def __call__(self, place: int) -> Tensor:
        """The noise of this place, on the device. Places in ascending order, each as often as one likes, cost a draw each."""
        if place < self._next - 1 or self._next == 0:
            self._generator.manual_seed(self._seed)
            self._next = 0
        while self._next <= place:
            self._noise = torch.randn(self._shape, generator=self._generator)
            self._next += 1
        return to_device(self._noise, self._device)


def stacked(noises: Sequence[FreshNoise]) -> Fresh:
    """The noises (n, c, h, w) of several images by place, which are kept: schedules of one sample ask for them in turn."""
    return cache(lambda place: torch.stack([noise(place) for noise in noises]))
