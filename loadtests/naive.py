"""The naive peer: FastAPI and a diffusers pipeline that serves one request after the other, compiled as well as it can be.

`torch.compile` of UNet and VAE, on CUDA with CUDA graphs (reduce-overhead) and channels-last. One thread compiles, warms up
and serves, since such graphs belong to a thread. Started by `loadtests.contenders`; LOADTEST_SIMULATED puts it on the simulated
card instead, as compiled as it was measured there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from fastapi import FastAPI
from torch import Tensor

from engine import compiling
from loadtests.card import FULL
from loadtests.competitor import ImageRequest, answer, is_simulated
from loadtests.h100 import COMPILED
from loadtests.mixes import FEWER, TIERS
from loadtests.simulated import SimulatedDecoder
from loadtests.simulated_device import SimulatedDevice
from server import config

WARM_UPS = 2  # calls of the pipeline: the first compiles, and graphs are recorded behind that
settings = config.load()
thread = ThreadPoolExecutor(max_workers=1)  # also the queue


def load() -> Any:
    """The pipeline, ready to serve."""
    pipeline = DiffusionPipeline.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype)).to(settings.device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if is_simulated():
        simulate(pipeline)
        return pipeline
    compiling.cache_in(settings.compile_cache)
    cuda = settings.device.startswith("cuda")
    if cuda:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    mode = "reduce-overhead" if cuda else "default"
    pipeline.unet = torch.compile(pipeline.unet, mode=mode, fullgraph=True)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode=mode)
    for _ in range(WARM_UPS):
        draw(pipeline, ImageRequest(prompt="", tier=TIERS[0], seed=0, guidance_scale=2.0))
    return pipeline


def simulate(pipeline: Any) -> None:
    """Let UNet and VAE only take the card's time."""
    device = SimulatedDevice()
    decoder = SimulatedDecoder(pipeline.vae_scale_factor, device)

    def predict(sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        device.call(COMPILED.calls[FULL], len(sample))
        return (sample,)

    def decode(latents: Tensor, **_: Any) -> tuple[Tensor]:
        images = decoder(latents)
        device.fence().wait()
        return (images,)

    pipeline.unet.forward = predict
    pipeline.vae.decode = decode


def draw(pipeline: Any, request: ImageRequest) -> Tensor:
    """One image, (3, height, width) on the host."""
    images = pipeline(
        request.prompt,
        num_inference_steps=FEWER[request.tier],
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="pt",
    ).images
    image: Tensor = images[0].float().cpu()
    return image


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """Begin to listen when the pipeline is warm."""
    app.state.pipeline = thread.submit(load).result()
    yield


app = FastAPI(lifespan=opened)


@app.get("/readyz")
def ready() -> str:
    """Whoever hears this can be served."""
    return "ready"


@app.post("/generate")
def generate(request: ImageRequest) -> dict[str, Any]:
    """One image, when it is this request's turn."""
    return answer(thread.submit(draw, app.state.pipeline, request).result(), request)
