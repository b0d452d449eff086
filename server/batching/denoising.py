"""Waves from their launch to their landing, with all that is counted, learnt and told of them."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from engine.device import DeviceLost
from engine.image_size import ImageSize
from engine.macs import StepMacs
from engine.policy import Balanced
from engine.waves import Waves
from registry.schedule import said
from server.batching import accounting
from server.batching.admission import Admission
from server.batching.decodes import Undecoded
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import ImagesInFlight
from server.batching.inflight_wave import InflightWave
from server.batching.text_and_vae import TextAndVae
from server.telemetry import metrics

FAILED_WAVES = 5  # in a row, and the device counts as lost, whatever it says


class FailedWaves:
    """How many failed whole, one after the other, of all models that share a device."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> None:
        """Note one. Raises `DeviceLost` when nothing works any more."""
        self._count += 1
        if self._count >= FAILED_WAVES:
            raise DeviceLost(f"{self._count} waves in a row failed")

    def end(self) -> None:
        """One has come to its end."""
        self._count = 0


class Denoising:
    """Launches waves and lets them land. For the engine's thread. Methods raise `DeviceLost`."""

    def __init__(
        self,
        waves: Waves[ImageTask],
        policy: Balanced,
        macs_at: Callable[[ImageSize | None, int], StepMacs],
        images: ImagesInFlight,
        text_and_vae: TextAndVae,
        admission: Admission,
        failed_waves: FailedWaves,
    ) -> None:
        self._waves = waves
        self._policy = policy
        self._macs_at = macs_at
        self._images = images
        self._text_and_vae = text_and_vae
        self._admission = admission
        self._failed_waves = failed_waves

    def launch(self) -> InflightWave | None:
        """Ask the device for one wave. None where there is nothing to do, or all of it failed."""
        wave = self._waves.launch(monotonic())
        if wave is None:
            return None
        self._images.fail_in(wave)
        if not wave.tasks:
            self._failed_waves.add()
            return None
        accounting.count_launch(wave, self._macs_at(wave.need.size, wave.need.chunks))
        task_macs = accounting.count_wave(wave.need, wave.tasks)
        for task, macs in zip(wave.tasks, task_macs, strict=True):
            self._images.settle(task, macs)
        slots = self._waves.slots
        shown = [task for task in wave.tasks if task.position in task.preview_at]
        previews = [
            Undecoded(task, slots.at(task.size, task.chunks).clean(task.slots[0]), task.preview_at[task.position])
            for task in shown
        ]
        return InflightWave(wave, sum(task_macs), previews, self._waves.network.fence())

    def land(self, inflight: InflightWave) -> list[Undecoded]:
        """Wait for a wave's end and learn from it. Returns what is to be decoded: images that it finished, and previews."""
        wave = self._waves.land(inflight.wave)
        inflight.end.wait()
        self._failed_waves.end()
        ended = monotonic()
        self._learn(inflight)
        self._images.fail_in(wave)
        for task in wave.failed:
            self._text_and_vae.forget(task.spec)
        for task in [task for task in wave.tasks if not task.left]:
            task.denoised = ended
            task.wave_seconds += wave.seconds
            self._images.advance(task)
            task.trace.add(wave.need.kind, ended - wave.seconds, ended, branch=said(wave.need.branch), unet_rows=wave.unet_rows)
        finished = [Undecoded(task, task.latent) for task in wave.finished if task.latent is not None]
        return [latent for latent in (*finished, *inflight.previews) if not latent.task.left]

    def predicted_seconds(self, inflight: InflightWave) -> float:
        """What a wave should take the device."""
        return self._policy.curve.seconds(inflight.wave.need, inflight.wave.unet_rows)

    def _learn(self, inflight: InflightWave) -> None:
        wave, kind, seconds = inflight.wave, inflight.wave.need.kind, inflight.wave.seconds
        metrics.wave_rows.labels(kind).observe(wave.unet_rows)
        metrics.wave_seconds.labels(kind).observe(seconds)
        self._admission.measured(inflight.macs, seconds)
        if not wave.failed:  # else it was several calls
            self._policy.curve.observe(wave.need, wave.unet_rows, seconds)
