"""What happens to an image before its first wave and after its last: text encoding and VAE decoding, a few at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from time import monotonic
from typing import Literal

import torch
from torch import Tensor

from engine.condition import Condition
from engine.decoders import Decoded
from engine.images import NOT_FINITE
from engine.model import Model
from server.batching.image_task import ImageSpec
from server.batching.moving_average import MovingAverage
from server.batching.prompt_cache import PromptCache
from server.telemetry import metrics


class TextAndVae:
    """The model's text encoder and VAE, timed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds = defaultdict[str, MovingAverage](MovingAverage)  # of one image, by what is done with it
        self._prompts, self._negatives = PromptCache(model.encode), PromptCache(model.negative)
        metrics.decoder_upcast.set(model.decoder.overflowed)  # its weights, or in the warm-up

    @property
    def seconds_per_image(self) -> float:
        """What encoding and decoding take together for one image, on the average; 0 before the first image."""
        return sum(average.value for average in list(self._seconds.values()))

    def encode(self, specs: Sequence[ImageSpec]) -> list[tuple[Condition, Condition | None]]:
        """A condition of one row for each image, and a negative one where it is guided."""
        start = monotonic()
        conditions = self._prompts.of([spec.prompt for spec in specs])
        negatives = self._negatives.of([spec.negative for spec in specs if spec.unet_rows == 2])
        self.took("encode", monotonic() - start, len(specs))  # of a GPU only the host's part
        own = [self._model.at_guidance(conditions[spec.prompt], spec.guidance) for spec in specs]
        away = [negatives[spec.negative] if spec.unet_rows == 2 else None for spec in specs]
        return list(zip(own, away, strict=True))

    def decode(self, latents: Sequence[Tensor]) -> Decoded:
        """Levels (n, height, width, 3) of latents (c, h, w). They are there once a fence behind this call is passed.

        Whoever waits for that fence reports the seconds with `took`, and has what is not finite decoded again.
        """
        return self._model.decode_later(torch.stack(list(latents)))

    def decode_again(self, latent: Tensor) -> Tensor:
        """Levels (height, width, 3) of a latent whose pixels were not finite, by a wider decoder where there is one.

        Waits for the device. Raises `FloatingPointError` where they are not finite still.
        """
        decoded = self._model.decode_again(latent[None])
        metrics.decoder_upcast.set(self._model.decoder.overflowed)
        if not decoded.finite.all():
            raise FloatingPointError(NOT_FINITE)
        return decoded.images[0]

    def forget(self, spec: ImageSpec) -> None:
        """Keep nothing of the text of an image that failed: its condition may not be finite, and would ruin others."""
        self._prompts.forget(spec.prompt)
        self._negatives.forget(spec.negative)

    def took(self, work: Literal["encode", "decode"], seconds: float, images: int) -> None:
        """Learn what a batch of so many images took."""
        metrics.stage_seconds.labels(work).observe(seconds)
        self._seconds[work].add(seconds / images)
