"""The naive peer: FastAPI and a diffusers pipeline behind one lock, one pipeline call for each request.

Started by `loadtests.contenders`; LOADTEST_SIMULATED puts its UNet on the simulated device.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from fastapi import FastAPI
from pydantic import BaseModel

from engine.images import levels
from loadtests.mixes import MODEL, mixes
from loadtests.simulated import SimulatedDecoder, SimulatedDevice, call_seconds
from server.requests.image_file import ImageFormat

STEPS = {tier: schedule.computed for tier, schedule in mixes()["fewer"].schedules.items()}


class NaiveRequest(BaseModel):
    """One image."""

    prompt: str
    tier: str
    seed: int


app = FastAPI()
pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
pipeline.set_progress_bar_config(disable=True)
turn = Lock()

if os.environ.get("LOADTEST_SIMULATED"):
    device, simulated_decoder = SimulatedDevice(), SimulatedDecoder(pipeline.vae_scale_factor)

    def _predict(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        device.queue(call_seconds(len(sample)))
        return (sample,)

    def _decode(latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        device.fence().wait()
        return (simulated_decoder(latents),)

    pipeline.unet.forward = _predict
    pipeline.vae.decode = _decode


@app.get("/readyz")
def ready() -> str:
    """The pipeline was loaded before the application began to listen."""
    return "ready"


@app.post("/generate")
def generate(request: NaiveRequest) -> dict[str, list[str]]:
    """One image, when it is this request's turn."""
    with turn:
        images = pipeline(
            request.prompt,
            num_inference_steps=STEPS[request.tier],
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="pt",
        ).images
    parameters = {"prompt": request.prompt, "seed": str(request.seed)}
    return {"images": [ImageFormat().in_base64(levels(images[0]).numpy(), parameters)]}
