"""What a device's memory holds, as far as one can ask it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from typing_extensions import override

PHRASES = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # of torch, its CPU allocator, cuDNN and cuBLAS


class Memory(Protocol):
    """What can be asked of a device's memory."""

    name: str

    def free(self) -> float:
        """Bytes that new tensors may take; infinite where nobody knows."""

    def watch(self) -> None:
        """Begin to measure."""

    def taken(self) -> int:
        """The most bytes that were held at once since `watch`, beyond those that were held then."""

    def release(self) -> None:
        """Give back what is kept for reuse."""


class HostMemory(Memory):
    """A CPU's, which is not measured: the system swaps or ends a process long before an allocation fails."""

    name = "the computer"

    @override
    def free(self) -> float:
        return math.inf

    @override
    def watch(self) -> None:
        pass

    @override
    def taken(self) -> int:
        return 0

    @override
    def release(self) -> None:
        pass


class CudaMemory(Memory):
    """A GPU's: other processes may have a part of it."""

    def __init__(self, device: torch.device) -> None:
        self.name, self._device, self._before = str(device), device, 0

    @override
    def free(self) -> float:
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return float(torch.cuda.mem_get_info(self._device)[0] + unused)

    @override
    def watch(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    @override
    def taken(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before

    @override
    def release(self) -> None:
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> Memory:
    """The memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in PHRASES)
