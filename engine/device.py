"""The host and its device: copies that do not wait for each other, fences that say how far the device is, lanes in which it
works side by side, and how one knows that it is lost.

A GPU works behind the host, which only queues calls. A plain `tensor.to("cuda")` or `tensor.cpu()` waits until all of them are
done, and the device then idles until the host has queued the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

# Codes of CUDA's runtime after which the device goes on: an invalid value, no memory, a launch that is not possible, and what a
# capture forbids. After any other one every call fails until the process ends (cudaError_t in CUDA's runtime API).
_HARMLESS = {1, 2, 9, 98, 209, 701, 801, *range(900, 911)}

_EXCLUSIVE = RLock()


class DeviceLost(Exception):
    """The device answers nothing any more, and will not in this process."""


def lost(error: BaseException) -> bool:
    """Whether this error, or one that caused it, says that the device is lost; one without memory is not."""
    while True:
        if isinstance(error, DeviceLost):
            return True
        if isinstance(error, torch.AcceleratorError):
            return getattr(error, "error_code", None) not in _HARMLESS
        if error.__cause__ is None:
            return False
        error = error.__cause__


def exclusive() -> RLock:
    """The lock of whoever must be alone with the device: while a graph of calls is captured, no other thread may use CUDA.

    The capture holds it, and so does every thread but the engine's as long as it uses the device.
    """
    return _EXCLUSIVE


class Fence(Protocol):
    """A mark behind everything that was asked of the device before."""

    def done(self) -> bool:
        """Whether the device is past this mark. Does not wait. Raises `DeviceLost`."""

    def wait(self) -> None:
        """Block until the device is past this mark. Raises `DeviceLost`."""

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
        with _losing():
            return bool(self._event.query())

    @override
    def wait(self) -> None:
        with _losing():
            self._event.synchronize()

    @override
    def since(self, earlier: CudaFence) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let the stream wait until the device is past this mark, and not the host."""
        stream.wait_event(self._event)


class Lane(Protocol):
    """A queue of the device's own: what is asked in it runs one after the other, and beside everything else."""

    def after(self, mark: Any) -> AbstractContextManager[None]:
        """What is asked of the device within runs in this lane, once it is past this fence of its own.

        Tensors that were made outside and are read within must be held until a fence of this lane behind that is passed: torch
        gives their memory to others as soon as the host has let go of them.
        """

    def fence(self) -> Fence:
        """A fence behind everything that was asked in this lane so far."""


class HostLane(Lane):
    """The lane of a CPU, which computes while it is asked."""

    @override
    def after(self, mark: Any) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    def fence(self) -> Fence:
        return HostFence()


class CudaLane(Lane):
    """A stream, of the lowest priority: streams of a higher one go first where both have something to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=0)

    @override
    @contextmanager
    def after(self, mark: CudaFence) -> Iterator[None]:
        mark.hold(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    @override
    def fence(self) -> Fence:
        with torch.cuda.stream(self._stream):
            return CudaFence(self._device)


def fence(device: torch.device) -> Fence:
    """A fence behind everything that was asked of this device so far."""
    return CudaFence(device) if device.type == "cuda" else HostFence()


def lane(device: torch.device) -> Lane:
    """A lane of this device's that nobody else uses."""
    return CudaLane(device) if device.type == "cuda" else HostLane()


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


@contextmanager
def _losing() -> Iterator[None]:
    """An error at a fence is of what was asked before it, and nobody can tell of what: the device is lost."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceLost(str(error)) from error
