"""A simulation, never a measurement: a model whose UNet and VAE only take a card's time (`loadtests.h100`).

The prediction is the latent itself, and cached features are zeros of their real size; the decoder enlarges the latent.
Everything else is real and the host's: text encoding, the latents' arithmetic, scheduling, slots, image files, HTTP. The curves
are those of Stable Diffusion v1.5, whatever the model: a partial step of branch s costs what it does there. A call takes the
time of a graph while a simulated graph is replayed, and else that of an eager call, the host's part included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from engine.condition import Condition
from engine.device import Fence, Lane
from engine.graphs import Graph, Graphs
from engine.items import UNet
from engine.macs import StepMacs
from engine.model import Model
from engine.unrolled import UnrolledUNet
from loadtests.card import FULL, CallCost, numbered
from loadtests.h100 import CAPTURED, CARDS, COMPILED, DECODING, EAGER, WHERE
from loadtests.simulated_device import SimulatedDevice, be_busy
from registry.schedule import Branch

CAPTURE_SECONDS = 0.05  # of a graph, measured where the curves were
_replaying = ContextVar("replaying", default=False)


def label(name: str) -> str:
    """What is simulated, and after which measurement: for whoever reads figures of it."""
    return f"SIMULATION of {WHERE}:\n{CARDS[name].about}; {COMPILED.about}; VAE 22 ms an image, 15 in eights"


def simulated(model: Model) -> Model:
    """The same model on a simulated card."""
    network = SimulatedUNet(cast(UNet, model.network.module), model.macs)
    return replace(model, network=network, decoder=SimulatedDecoder(model.decoder.scale, network.simulated_device))


class SimulatedUNet(UnrolledUNet):
    """A UNet that takes a card's time instead of computing."""

    def __init__(self, unet: UNet, macs: StepMacs) -> None:
        super().__init__(unet)
        self.simulated_device = SimulatedDevice()
        self._macs = macs

    @override
    def fence(self) -> Fence:
        return self.simulated_device.fence()

    @override
    def lane(self) -> Lane:
        return self.simulated_device.new_lane()

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        self.simulated_device.call(self._cost(FULL, 1.0), len(sample))
        shapes = self._macs.features
        return sample, {branch: torch.zeros(len(sample), *shapes[branch]) for branch in keep if branch in shapes}

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        share = self._macs.of("partial", branch) / self._macs.of("full", 0)
        self.simulated_device.call(self._cost(numbered(branch), share), len(sample))
        return sample

    def _cost(self, branch: int, share: float) -> CallCost:
        return (CAPTURED if _replaying.get() else EAGER).call(branch, share)


class SimulatedGraphs(Graphs):
    """Captures calls as a card's graphs do: it takes a moment each, and then the host next to nothing."""

    bytes = 0

    @override
    def capture(self, call: Callable[[], None]) -> Graph:
        be_busy(CAPTURE_SECONDS)
        return SimulatedGraph(call)


@dataclass(frozen=True)
class SimulatedGraph(Graph):
    """A call whose UNet takes a graph's time."""

    call: Callable[[], None]

    @override
    def replay(self) -> None:
        token = _replaying.set(True)
        try:
            self.call()
        finally:
            _replaying.reset(token)


@dataclass(frozen=True)
class SimulatedDecoder:
    """A decoder that takes a card's time: three of the latent's channels, `scale` times as wide and high."""

    scale: int
    device: SimulatedDevice
    overflowed: bool = False

    def upcast(self) -> bool:
        """There is nothing to change."""
        return False

    def encode(self, images: Tensor) -> Tensor:
        """No load starts from images."""
        raise NotImplementedError

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W)."""
        self.device.call(DECODING, len(latents))
        return interpolate(latents[:, :3], scale_factor=float(self.scale))
