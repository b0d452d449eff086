"""A simulation, never a measurement of a GPU: a model whose UNet calls only take time, as on a device that likes large batches.

A full step of `rows` UNet rows takes the device CALL_MS + ROW_MS · rows, a partial step its share of the full step's MACs of
that. As a GPU does, the device works behind the host: a call only queues work, one call after the other, and whoever needs
what comes out waits for a fence. The prediction is the latent itself, and cached features are zeros of their real size. The
VAE's decoder, which belongs on the device too, only enlarges the latent. Everything else is real and the host's: text
encoding, the latents' arithmetic, scheduling, slots, PNG, HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from engine.condition import Condition
from engine.device import Fence, Lane
from engine.macs import StepMacs
from engine.model import Model
from engine.unrolled import UNet, UnrolledUNet

CALL_MS, ROW_MS = 16.0, 1.0
LABEL = f"SIMULATION: a UNet call takes a device behind the host {CALL_MS:.0f} + {ROW_MS:.0f}·rows ms; the VAE only enlarges"


def call_seconds(rows: float, share: float = 1.0) -> float:
    """What a UNet call of `rows` rows takes; `share` is a partial step's part of the full step's MACs."""
    return share * (CALL_MS + ROW_MS * rows) / 1000


def simulated(model: Model) -> Model:
    """The same model on the simulated device."""
    return replace(model, network=SimulatedUNet(model.network.unet, model.macs), decoder=SimulatedDecoder(model.decoder.scale))


class SimulatedDevice:
    """A device that works behind the host: one call after the other, each for the seconds that it was asked for."""

    def __init__(self) -> None:
        self._free = 0.0

    def queue(self, seconds: float) -> None:
        """Queue a call of so many seconds."""
        self._free = max(self._free, time.monotonic()) + seconds

    def queue_after(self, mark: SimulatedFence) -> None:
        """Begin what is queued from now on no earlier than that."""
        self._free = max(self._free, mark.at)

    def fence(self) -> SimulatedFence:
        """A fence behind all calls queued so far."""
        return SimulatedFence(max(self._free, time.monotonic()))


@dataclass(frozen=True)
class SimulatedFence(Fence):
    """A fence that is passed at a time of the monotonic clock."""

    at: float

    @override
    def done(self) -> bool:
        return time.monotonic() >= self.at

    @override
    def wait(self) -> None:
        time.sleep(max(self.at - time.monotonic(), 0.0))  # releases the interpreter's lock, as waiting for a GPU does

    @override
    def since(self, earlier: Self) -> float:
        return self.at - earlier.at


class SimulatedLane(Lane):
    """A queue of its own beside the UNet's: as if both together took no longer than each alone."""

    def __init__(self) -> None:
        self._device = SimulatedDevice()

    @override
    @contextmanager
    def after(self, mark: SimulatedFence) -> Iterator[None]:
        self._device.queue_after(mark)
        yield

    @override
    def fence(self) -> Fence:
        return self._device.fence()


class SimulatedUNet(UnrolledUNet):
    """A UNet that takes a device's time instead of computing."""

    def __init__(self, unet: UNet, macs: StepMacs) -> None:
        super().__init__(unet)
        self._macs = macs
        self._device = SimulatedDevice()

    @override
    def fence(self) -> Fence:
        return self._device.fence()

    @override
    def lane(self) -> Lane:
        return SimulatedLane()

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self._device.queue(call_seconds(len(sample)))
        shapes = self._macs.features
        return sample, {branch: torch.zeros(len(sample), *shapes[branch]) for branch in keep if branch in shapes}

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: int, feature: Tensor) -> Tensor:
        self._device.queue(call_seconds(len(sample), self._macs.of("partial", branch) / self._macs.of("full", 0)))
        return sample


@dataclass(frozen=True)
class SimulatedDecoder:
    """A decoder that takes no time: three of the latent's channels, `scale` times as wide and high."""

    scale: int
    overflowed: bool = False

    def upcast(self) -> bool:
        """There is nothing to change."""
        return False

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W)."""
        return interpolate(latents[:, :3], scale_factor=float(self.scale))
