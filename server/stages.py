"""What happens to an image before its first wave and after its last: text encoding and VAE decoding, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from engine.condition import Condition
from engine.models import Model
from engine.waves import Row
from server import metrics
from server.order import Ticket

WEIGHT = 0.1  # of the newest batch in the moving average


class Stages:
    """The model's text encoder and VAE, timed. `seconds_per_image` is what both take for one image, on the average."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds: dict[str, float] = {}

    @property
    def seconds_per_image(self) -> float:
        """0 before the first image."""
        return sum(self._seconds.values())

    def encode(self, tickets: Sequence[Ticket]) -> list[Row]:
        """A row for each ticket, ready for its first wave."""
        start, orders = monotonic(), [ticket.order for ticket in tickets]
        wanted = _each_once([order.prompt for order in orders], self._model.encode)
        unwanted = _each_once([order.negative for order in orders if order.unet_rows == 2], self._model.negative)
        rows = [
            Row(
                order.program,
                self._model.noise(order.seed),
                wanted[order.prompt],
                order.guidance,
                unwanted[order.negative] if order.unet_rows == 2 else None,
                order.deadline,
                idle=order.idle,
            )
            for order in orders
        ]
        self._took("encode", start, len(tickets))
        return rows

    def decode(self, latents: Sequence[Tensor], stage: str = "decode") -> Tensor:
        """Pixels (n, 3, height, width) of latents (c, h, w)."""
        start = monotonic()
        images = self._model.decode(torch.stack(list(latents)))
        self._took(stage, start, len(latents))
        return images

    def _took(self, stage: str, start: float, images: int) -> None:
        seconds = monotonic() - start
        metrics.stage_seconds.labels(stage).observe(seconds)
        if stage != "preview":  # few ask for them
            each = seconds / images
            known = self._seconds.setdefault(stage, each)
            self._seconds[stage] = known + WEIGHT * (each - known)


def _each_once(prompts: Sequence[str], encode: Callable[[Sequence[str]], Condition]) -> dict[str, Condition]:
    """The condition of each prompt, one row each; equal prompts are encoded once."""
    different = list(dict.fromkeys(prompts))
    if not different:
        return {}
    encoded = encode(different)
    return {prompt: encoded[i : i + 1] for i, prompt in enumerate(different)}
