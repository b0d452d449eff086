"""Decoding behind a wave: the images that it finishes, and previews of those that it does not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from engine.images import finite
from engine.model import Model
from engine.slots import Slots
from engine.waves import Wave
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import ImagesInFlight, log_fields
from server.batching.inflight_wave import InflightPreview, InflightWave
from server.batching.text_and_vae import TextAndVae

log = logging.getLogger(__name__)


class WaveDecoder:
    """Asks the device to decode behind a wave that was launched, without waiting; and again, where the pixels overflowed."""

    def __init__(self, model: Model, slots: Slots, text_and_vae: TextAndVae, images: ImagesInFlight) -> None:
        self._model = model
        self._slots = slots
        self._text_and_vae = text_and_vae
        self._images = images

    def decode(self, wave: Wave[ImageTask], macs: int) -> InflightWave:
        """Ask for the wave's images and previews, and fence them. An image that cannot be decoded fails alone.

        macs: of all tasks of the wave together.
        """
        pixels = dict[ImageTask, Tensor]()

        def decode(tasks: Sequence[ImageTask]) -> None:
            latents = [task.latent for task in tasks if task.latent is not None]
            pixels.update(zip(tasks, self._text_and_vae.decode(latents), strict=True))

        self._images.attempt([task for task in wave.tasks if task.done], decode, "decoding")
        decoded = self._model.network.fence()
        previews = self._previews([task for task in wave.tasks if task.position in task.preview_at])
        return InflightWave(wave, macs, pixels, previews, decoded, self._model.network.fence())

    def landed(self, inflight: InflightWave) -> InflightWave:
        """The wave after its end, with nothing in it that is not finite: that is decoded once more, in a wider type.

        An image that overflows there too fails alone, and such a preview is left out.
        """
        images = {task: pixels for task, pixels in inflight.images.items() if not task.left}
        ruined = [task for task, pixels in images.items() if not _is_finite(pixels)]

        def again(tasks: Sequence[ImageTask]) -> None:
            latents = [task.latent for task in tasks if task.latent is not None]
            images.update(zip(tasks, self._text_and_vae.decode_again(latents), strict=True))

        self._images.attempt(ruined, again, "decoding")
        previews = {task: self._finite_preview(task, made) for task, made in inflight.previews.items() if not task.left}
        return replace(inflight, images=images, previews={task: made for task, made in previews.items() if made})

    def _previews(self, tasks: Sequence[ImageTask]) -> dict[ImageTask, InflightPreview]:
        """The clean latents that their last step predicts, decoded. That one fails costs nobody an image."""
        if not tasks:
            return {}
        clean = [self._slots.clean(task.slots[0]) for task in tasks]
        try:
            pixels = self._text_and_vae.decode(clean)
        except Exception:
            log.exception("a preview failed", extra=log_fields(tasks))
            return {}
        made = zip(tasks, clean, pixels, strict=True)
        return {task: InflightPreview(task.preview_at[task.position], latent, image) for task, latent, image in made}

    def _finite_preview(self, task: ImageTask, preview: InflightPreview) -> InflightPreview | None:
        """The preview, decoded once more where it is not finite; None where that does not help."""
        if _is_finite(preview.pixels):
            return preview
        try:
            return preview._replace(pixels=self._text_and_vae.decode_again([preview.clean])[0])
        except Exception:
            log.exception("a preview failed", extra=log_fields([task]))
            return None


def _is_finite(pixels: Tensor) -> bool:
    return bool(finite(pixels[None]))
