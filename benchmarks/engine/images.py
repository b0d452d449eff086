"""What an image takes beside its steps: the text encoder, the decoder, and its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks import image_files
from benchmarks.engine.competitors import Field, Ours
from benchmarks.engine.result import BenchmarkResult
from benchmarks.engine.timing import settled, side_by_side
from engine.decoders import Autoencoder
from engine.model import Model
from server.requests.image_file import ImageFormat

COUNTS = (1, 8)
Calls = dict[tuple[str, str], Callable[[], object]]  # by what and who


def images(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """Text encoder and decoder for one image and for eight, and a file, beside what diffusers and Pillow do."""
    model = field.workload.model
    for count in COUNTS:
        latents, prompts = field.workload.noise(count), [model.prompts.sample] * count
        calls: Calls = {("text encoder", "ours"): partial(model.encode, prompts)}
        for who in field.all:
            if isinstance(who, Ours) and not who.graphs:
                calls["decoder", who.name] = partial(_decoded, who.workload.model, latents)
        if isinstance(model.decoder, Autoencoder):
            calls["decoder", "diffusers"] = partial(_decoded_by_diffusers, model.decoder.vae, latents)
        yield from _timed(field, count, calls, repeats)
    levels = image_files.images()["with noise of 2 levels"]
    files: Calls = {
        ("PNG of 512×512", "ours"): partial(ImageFormat().file, levels, image_files.PARAMETERS),
        ("PNG of 512×512", "Pillow"): partial(image_files.pillow_png, levels),
    }
    yield from _timed(field, 1, files, repeats)


def _timed(field: Field, count: int, calls: Calls, repeats: int) -> Iterator[BenchmarkResult]:
    seconds = side_by_side(list(calls.values()), repeats, settled(field.workload.model.device))
    for i, (what, who) in enumerate(calls):
        yield BenchmarkResult("images", what, count, who, tuple(map(float, seconds[:, i])))


def _decoded(model: Model, latents: Tensor) -> None:
    """As the server does it, up to levels in the host's memory."""
    model.decode_later(latents)
    model.network.fence().wait()


def _decoded_by_diffusers(vae: Any, latents: Tensor) -> object:
    """As its pipelines do it, up to pictures."""
    from diffusers.image_processor import VaeImageProcessor

    decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return VaeImageProcessor().postprocess(decoded, output_type="pil")
