"""Decoding beside denoising: latents become pixels in a lane of the device's own, a few at once, while the waves go on."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from traceback import clear_frames

import torch
from torch import Tensor

from engine.decoders import Decoded
from engine.denoiser import Denoiser
from engine.device import Fence, lost
from engine.image_size import ImageSize
from engine.model import Model
from server.batching.chunks import Chunks, measured
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import ImagesInFlight, log_fields
from server.batching.text_and_vae import TextAndVae

log = logging.getLogger(__name__)

AT_WORK = 2  # chunks asked of the device at once: it finds the next one when it is done, and newcomers make that one larger
MOST_WAITING = 64  # latents; where the decoder is slower than the waves, they wait for it


@dataclass(frozen=True, eq=False)
class Undecoded:
    """A latent (c, h, w) that is to be decoded: of a finished image, or of preview `preview` (0-based) of one."""

    task: ImageTask
    latent: Tensor
    preview: int | None = None


@dataclass(frozen=True, eq=False)
class InflightDecode:
    """A chunk that the device was asked to decode. It holds the latents: nobody may have their memory before `end`."""

    latents: Sequence[Undecoded]
    decoded: Decoded  # there once `end` is passed
    begin: Fence
    end: Fence


class Decodes:
    """Latents that wait for the decoder and chunks at work, in the order in which they came. For the engine's thread.

    A chunk that fails is tried in halves, so that an image that cannot be decoded fails alone, and a preview costs nobody an
    image. Methods raise `DeviceLost` and its like; see `engine.device.lost`.
    """

    def __init__(self, network: Denoiser, text_and_vae: TextAndVae, images: ImagesInFlight) -> None:
        self._lane = network.lane()
        self._text_and_vae = text_and_vae
        self._images = images
        self._chunks = defaultdict[ImageSize | None, Chunks](Chunks)  # by the size of images
        self._ready = network.fence()
        self._waiting = deque[Undecoded]()
        self._at_work = deque[InflightDecode]()

    def __len__(self) -> int:
        """Latents that wait or are at work."""
        return len(self._waiting) + sum(len(decode.latents) for decode in list(self._at_work))

    def warm_up(self, model: Model, sizes: Iterable[ImageSize | None] = (None,)) -> None:
        """Before the first latents: learn how many images of each size the device has memory for.

        Raises what the device raises.
        """
        with self._lane.after(self._ready):
            self._chunks.update((size, measured(model, size)) for size in sizes)

    def add(self, latents: Sequence[Undecoded], ready: Fence) -> None:
        """Decode these latents, which are there when the device is past this fence. Waits only where too many wait already."""
        self._waiting.extend(latents)
        self._ready = ready
        while len(self._waiting) > MOST_WAITING:
            self._wait_for_one()

    def advance(self) -> None:
        """Hand out what is decoded, and ask for more. Does not wait."""
        while True:
            if self._at_work and self._at_work[0].end.done():
                self._land(self._at_work.popleft())
            elif self._waiting and len(self._at_work) < AT_WORK:
                self._launch_next()
            else:
                return

    def finish(self) -> None:
        """Wait until all is handed out."""
        while len(self):
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        while self._waiting and len(self._at_work) < AT_WORK:
            self._launch_next()
        if self._at_work:
            self._at_work[0].end.wait()
            self._land(self._at_work.popleft())

    def _launch_next(self) -> None:
        """The next chunk: those who wait longest and others of their size, without those who have left meanwhile."""
        self._waiting = deque(latent for latent in self._waiting if not latent.task.left)
        if self._waiting:
            size = self._waiting[0].task.size
            alike = [latent for latent in self._waiting if latent.task.size == size]
            chunk = alike[: self._chunks[size].size(len(alike))]
            self._waiting = deque(latent for latent in self._waiting if latent not in chunk)
            self._launch(chunk)

    def _launch(self, latents: Sequence[Undecoded]) -> None:
        try:
            with self._lane.after(self._ready):
                begin = self._lane.fence()
                decoded = self._text_and_vae.decode([latent.latent for latent in latents])
            self._at_work.append(InflightDecode(latents, decoded, begin, self._lane.fence()))
            return
        except Exception as error:
            if lost(error):
                raise
            clear_frames(error.__traceback__)  # which hold the memory of the attempt
            if isinstance(error, torch.OutOfMemoryError):
                self._chunks[latents[0].task.size].exhausted(len(latents))
            if len(latents) == 1:
                self._failed(latents[0], error)
                return
        half = len(latents) // 2
        self._launch(latents[:half])
        self._launch(latents[half:])

    def _land(self, decode: InflightDecode) -> None:
        """Hand out a chunk whose end is passed; what is not finite is decoded once more, in a wider type."""
        seconds, ended = decode.end.since(decode.begin), monotonic()
        self._text_and_vae.decoded(seconds, decode.decoded.images)
        for latent, pixels, finite in zip(decode.latents, *decode.decoded, strict=True):
            task = latent.task
            if task.left:
                continue
            try:
                pixels = pixels if finite else self._again(latent)
            except Exception as error:
                if lost(error):
                    raise
                self._failed(latent, error)
                continue
            if latent.preview is not None:
                self._images.show(task, latent.preview, pixels)
            else:
                task.trace.add("decode", max(task.denoised, ended - seconds), ended, images=len(decode.latents))
                self._images.finish(task, pixels)

    def _again(self, latent: Undecoded) -> Tensor:
        with self._lane.after(self._ready):
            return self._text_and_vae.decode_again(latent.latent)

    def _failed(self, latent: Undecoded, error: Exception) -> None:
        """Unless it is the device: a fence says so where the error does not."""
        self._lane.fence().done()
        what = "decoding" if latent.preview is None else "a preview"
        log.error("%s failed", what, exc_info=error, extra=log_fields([latent.task]))
        if latent.preview is None:
            self._images.fail([latent.task], error, what)
