"""Bytes on their way to the device: one buffer there that never moves, and one copy for all that a wave needs."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from engine.device import Fence, fence

BUFFERS = 3  # of the host: one that is filled, and those of the waves that were launched ahead


class Staging:
    """A buffer of bytes on the device, `target`, and how the host fills it: take `next`, write into it, `upload`.

    A GPU copies behind the host, so each upload has a buffer of the host's own, page-locked, until it is copied. A CPU computes
    as it is asked, and the host writes into `target` itself.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._device = device
        self.target = torch.zeros(size, dtype=torch.uint8, device=device)
        count = BUFFERS if device.type == "cuda" else 0
        self._buffers = deque[tuple[Tensor, Fence | None]](
            (torch.zeros(size, dtype=torch.uint8, pin_memory=True), None) for _ in range(count)
        )

    def next(self) -> Tensor:
        """The host's buffer to write into, until `upload`."""
        if not self._buffers:
            return self.target
        buffer, copied = self._buffers[0]
        if copied:
            copied.wait()
        return buffer

    def upload(self, size: int) -> None:
        """Copy the first `size` bytes of what was written, behind all that the device has to do now."""
        if self._buffers:
            buffer, _ = self._buffers.popleft()
            self.target[:size].copy_(buffer[:size], non_blocking=True)
            self._buffers.append((buffer, fence(self._device)))
