"""What happens to an image before its first wave and after its last: text encoding and VAE decoding, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Literal

import torch
from torch import Tensor

from engine.condition import Condition
from engine.decoders import Decoded
from engine.image_size import ImageSize
from engine.images import NOT_FINITE
from engine.model import Model
from server.batching.image_task import ImageSpec
from server.batching.moving_average import MovingAverage
from server.batching.prompt_cache import PromptCache, Wording
from server.telemetry import metrics


class TextAndVae:
    """The model's text encoder and VAE, timed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds = {"encode": MovingAverage(), "decode": MovingAverage()}  # of one text, and of one pixel
        self._prompts = PromptCache(lambda texts, chunks, syntax: model.encode(texts, chunks=chunks, syntax=syntax))
        self._negatives = PromptCache(lambda texts, chunks, syntax: model.negative(texts, chunks=chunks, syntax=syntax))
        metrics.decoder_upcast.set(model.decoder.overflowed)  # its weights, or in the warm-up

    def seconds_per_image(self, size: ImageSize | None = None) -> float:
        """What encoding and decoding take together for one image of a size, on the average; 0 before the first image."""
        return self._seconds["encode"].value + (size or self._model.image_size).pixels * self._seconds["decode"].value

    def encode(self, specs: Sequence[ImageSpec]) -> list[tuple[Condition, Condition | None]]:
        """A condition of one row for each image, at its size, and a negative one where it is guided."""
        start = monotonic()
        conditions = self._prompts.of([_prompt(spec) for spec in specs])
        negatives = self._negatives.of([_negative(spec) for spec in specs if spec.unet_rows == 2])
        self._took("encode", monotonic() - start, len(specs))  # of a GPU only the host's part
        own = [self._model.at_guidance(self._at(spec.size, conditions[_prompt(spec)]), spec.guidance) for spec in specs]
        away = [self._at(spec.size, negatives[_negative(spec)]) if spec.unet_rows == 2 else None for spec in specs]
        return list(zip(own, away, strict=True))

    def decode(self, latents: Sequence[Tensor]) -> Decoded:
        """Levels (n, height, width, 3) of latents (c, h, w), which all have one size.

        They are there once a fence behind this call is passed. Whoever waits for that fence reports the seconds with `decoded`,
        and has what is not finite decoded again.
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
        self._prompts.forget(_prompt(spec))
        self._negatives.forget(_negative(spec))

    def decoded(self, seconds: float, levels: Tensor) -> None:
        """Learn what it took to decode a batch to these levels (n, height, width, 3)."""
        self._took("decode", seconds, levels[..., 0].numel())

    def _took(self, work: Literal["encode", "decode"], seconds: float, count: int) -> None:
        metrics.stage_seconds.labels(work).observe(seconds)
        self._seconds[work].add(seconds / count)

    def _at(self, size: ImageSize | None, condition: Condition) -> Condition:
        """What is kept of a text is of the model's own size."""
        return condition if size is None else condition.at(*size)


def _prompt(spec: ImageSpec) -> Wording:
    return Wording(spec.prompt, spec.chunks, spec.syntax)


def _negative(spec: ImageSpec) -> Wording:
    return Wording(spec.negative, spec.chunks, spec.syntax)
