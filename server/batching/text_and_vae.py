"""What happens to an image before its first wave and after its last: text and image encoding, and VAE decoding."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Literal, get_args

import torch
from torch import Tensor

from engine.condition import Condition
from engine.decoders import Decoded
from engine.image_size import ImageSize
from engine.images import NOT_FINITE
from engine.model import Model
from engine.source import EncodedSource, kept_of, picture_of, pictured
from server.batching.image_task import ImageSpec, ImageTask
from server.batching.moving_average import MovingAverage
from server.batching.prompt_cache import PromptCache, Wording
from server.batching.source_cache import SourceCache
from server.loras.adapter_set import BASE
from server.telemetry import metrics

Work = Literal["encode", "vae_encode", "decode"]
WORK: tuple[Work, ...] = get_args(Work)  # whose seconds are averaged: of one text, of one pixel, of one pixel


class TextAndVae:
    """The model's text encoder and VAE, timed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds = {work: MovingAverage() for work in WORK}
        self._latents = SourceCache()
        self._prompts = PromptCache(lambda by, texts, chunks, syntax: by.encode(texts, chunks=chunks, syntax=syntax))
        self._negatives = PromptCache(lambda by, texts, chunks, syntax: by.negative(texts, chunks=chunks, syntax=syntax))
        metrics.decoder_upcast.set(model.decoder.overflowed)  # its weights, or in the warm-up

    def seconds_per_image(self, size: ImageSize | None = None, edited: bool = False) -> float:
        """What encoding and decoding take together for one image of a size, on the average; 0 before the first image.

        edited: whether it starts from an image, which may have to be encoded.
        """
        of_a_pixel = self._seconds["decode"].value + (self._seconds["vae_encode"].value if edited else 0.0)
        return self._seconds["encode"].value + (size or self._model.image_size).pixels * of_a_pixel

    def encode(self, tasks: Sequence[ImageTask]) -> list[tuple[Condition, Condition | None]]:
        """A condition of one row for each image, at its size, and a negative one where it is guided."""
        start, specs = monotonic(), [task.spec for task in tasks]
        readers = {task.spec.adapters.key_of_texts: task.adapted for task in tasks if task.adapted}
        models = readers | {BASE.key_of_texts: self._model}
        conditions = self._prompts.of([_prompt(spec) for spec in specs], models)
        negatives = self._negatives.of([_negative(spec) for spec in specs if spec.unet_rows == 2], models)
        self._took("encode", monotonic() - start, len(specs))  # of a GPU only the host's part
        own = [self._model.at_guidance(self._at(spec.size, conditions[_prompt(spec)]), spec.guidance) for spec in specs]
        away = [self._at(spec.size, negatives[_negative(spec)]) if spec.unet_rows == 2 else None for spec in specs]
        if self._model.inpaints:
            pictures = [self._picture(spec) for spec in specs]
            own = [pictured(self._model, one, *of) for one, of in zip(own, pictures, strict=True)]
            away = [one and pictured(self._model, one, *of) for one, of in zip(away, pictures, strict=True)]
        return list(zip(own, away, strict=True))

    def source(self, spec: ImageSpec) -> EncodedSource | None:
        """What an image starts from, if it does: encoded, unless that is kept from before. Waits for the device."""
        if spec.edit is None:
            return None
        image = spec.edit.source
        return EncodedSource(
            self._encoded(spec.edit.image_key, image.whole), kept_of(self._model, image) if spec.keeps else None
        )

    def _picture(self, spec: ImageSpec) -> tuple[Tensor | None, ImageSize | None]:
        """What an inpainting UNet sees beside the latent of this image, and its size."""
        if spec.edit is None:
            return None, spec.size
        around = self._encoded(f"{spec.edit.key} around", spec.edit.source.around)
        return picture_of(self._model, spec.edit.source, around), spec.size

    def _encoded(self, key: str, image: Tensor) -> Tensor:
        """The latent (c, h, w) of an image (1, 3, H, W)."""
        if (latent := self._latents.get(key)) is not None:
            return latent
        start = monotonic()
        latent = self._model.encode_image(image)
        metrics.decoder_upcast.set(self._model.decoder.overflowed)
        self._took("vae_encode", monotonic() - start, image[0, 0].numel())
        self._latents.put(key, latent)
        return latent

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
        if spec.edit:
            self._latents.forget(spec.edit.image_key)

    def decoded(self, seconds: float, levels: Tensor) -> None:
        """Learn what it took to decode a batch to these levels (n, height, width, 3)."""
        self._took("decode", seconds, levels[..., 0].numel())

    def _took(self, work: Work, seconds: float, count: int) -> None:
        metrics.stage_seconds.labels(work).observe(seconds)
        self._seconds[work].add(seconds / count)

    def _at(self, size: ImageSize | None, condition: Condition) -> Condition:
        """What is kept of a text is of the model's own size."""
        return condition if size is None else condition.at(*size)


def _prompt(spec: ImageSpec) -> Wording:
    return Wording(spec.prompt, spec.chunks, spec.syntax, spec.adapters.key_of_texts)


def _negative(spec: ImageSpec) -> Wording:
    return Wording(spec.negative, spec.chunks, spec.syntax, spec.adapters.key_of_texts)
