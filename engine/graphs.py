"""Calls that are captured once, and then are one launch of the device instead of one for each kernel (CUDA graphs)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol

import torch
from typing_extensions import override

from engine.device import exclusive

WARM_UPS = 3  # before a capture: what libraries choose, load and allocate at first calls must not happen in it


class Graph(Protocol):
    """A captured call."""

    def replay(self) -> None:
        """Queue it behind all that was asked of the device before. Does not wait."""


class Graphs(Protocol):
    """Captures calls that read and write memory which stays where it is, and that do the same whatever it holds."""

    @property
    def bytes(self) -> int:
        """Memory that they hold for what they compute in between."""

    def capture(self, call: Callable[[], None]) -> Graph:
        """Run the call a few times, and capture it.

        Raises what the call or the device raises: then capture nothing more, unless it was out of memory.
        """


class CudaGraphs(Graphs):
    """All in one memory pool, which is sound as they run one after the other and hand on nothing but what they write into
    memory of others. Capture large calls first: smaller ones then find room in the same memory.

    Their kernels keep the priority of the stream of the capture, which is above decoding's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._bytes = 0

    @property
    @override
    def bytes(self) -> int:
        return self._bytes

    @override
    def capture(self, call: Callable[[], None]) -> Graph:
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        with exclusive(), torch.cuda.device(self._device), torch.inference_mode():
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    call()
            stream.synchronize()
            torch.cuda.empty_cache()  # as the capture begins too: what it then reserves is its own
            before = torch.cuda.memory_reserved(self._device)
            collecting = gc.isenabled()
            gc.disable()  # it may free what a capture must not see freed, and takes longer than the capture
            try:
                with (
                    torch.cuda.stream(stream),  # which torch leaves only where the end of the capture does not fail too
                    torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
                ):
                    call()
            finally:
                if collecting:
                    gc.enable()
            torch.cuda.current_stream().wait_stream(stream)
            self._bytes += max(torch.cuda.memory_reserved(self._device) - before, 0)
        return graph


def graphs_for(device: torch.device) -> Graphs | None:
    """Where calls can be captured, and are queued more slowly than they run."""
    return CudaGraphs(device) if device.type == "cuda" else None
