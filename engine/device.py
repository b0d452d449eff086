"""The host and its device: copies that do not wait for each other, and fences that say how far the device is.

A GPU works behind the host, which only queues calls. A plain `tensor.to("cuda")` or `tensor.cpu()` waits until all of them are
done, and the device then idles until the host has queued the next one.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override


class Fence(Protocol):
    """A mark behind everything that was asked of the device before."""

    def done(self) -> bool:
        """Whether the device is past this mark. Does not wait."""

    def wait(self) -> None:
        """Block until the device is past this mark. Raises what went wrong on the device meanwhile."""

    def since(self, earlier: Any) -> float:
        """Seconds that the device took from an earlier fence of its own to this one. Both must be done."""


class HostFence(Fence):
    """The fence of a CPU, which computes while it is asked: a moment of the host's clock."""

    def __init__(self) -> None:
        self._at = monotonic()

    @override
    def done(self) -> bool:
        return True

    @override
    def wait(self) -> None:
        pass

    @override
    def since(self, earlier: HostFence) -> float:
        return self._at - earlier._at


class CudaFence(Fence):
    """An event in the device's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True, blocking=True)  # blocking: waiting takes no core of the host's
        self._event.record(torch.cuda.current_stream(device))

    @override
    def done(self) -> bool:
        return bool(self._event.query())

    @override
    def wait(self) -> None:
        self._event.synchronize()

    @override
    def since(self, earlier: CudaFence) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000


def fence(device: torch.device) -> Fence:
    """A fence behind everything that was asked of this device so far."""
    return CudaFence(device) if device.type == "cuda" else HostFence()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on the device, for whatever is asked of it from now on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until the device has read it


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory. From a GPU it is there once a fence behind this call is passed."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
