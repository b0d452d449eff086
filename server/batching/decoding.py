"""Decoding behind a wave: the images that it finishes, and previews of those that it does not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from engine.model import Model
from engine.slots import Slots
from engine.waves import Wave
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import ImagesInFlight, log_fields
from server.batching.inflight_wave import InflightWave
from server.batching.text_and_vae import TextAndVae

log = logging.getLogger(__name__)


class WaveDecoder:
    """Asks the device to decode behind a wave that was launched; nothing here waits for the device."""

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

    def _previews(self, tasks: Sequence[ImageTask]) -> dict[ImageTask, tuple[int, Tensor]]:
        """The clean latents that their last step predicts, decoded. That one fails costs nobody an image."""
        if not tasks:
            return {}
        try:
            pixels = self._text_and_vae.decode([self._slots.clean(task.slots[0]) for task in tasks])
        except Exception:
            log.exception("a preview failed", extra=log_fields(tasks))
            return {}
        return {task: (task.preview_at[task.position], image) for task, image in zip(tasks, pixels, strict=True)}
