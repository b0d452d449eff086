"""DeepCache (PyPI deepcache, arXiv 2312.00858), driven as its authors would: what our partial steps are held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from engine.items import UNet

ABSENT = "not measured: pip install --no-deps deepcache==0.1.1"


def installed() -> str | None:
    """The version of DeepCache that is installed, None without it."""
    try:
        return version("deepcache")
    except PackageNotFoundError:
        return None


def twin(unet: UNet) -> Any:
    """A copy of the modules around the same weights: DeepCache replaces the modules' `forward`, and ours stay as they are."""
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})


def cached_step(
    unet: UNet, scheduler_config: Mapping[str, Any], branch: int, first: Tensor, then: Tensor, context: Tensor
) -> Callable[[], Tensor]:
    """A call that runs DeepCache's cached step on `then`, after one full step on `first`: latents (rows, c, h, w).

    Both are steps of a 50-step DDIM trajectory, the second (`timesteps`) and the first. Returns the prediction.
    """
    theirs, scheduler = twin(unet), _ddim(scheduler_config)
    scheduler.set_timesteps(50)
    helper = _helper(SimpleNamespace(unet=theirs, scheduler=scheduler), every=50, branch=branch)
    helper.enable()

    def step(index: int, latent: Tensor) -> Tensor:
        output: Tensor = theirs(latent, scheduler.timesteps[index], encoder_hidden_states=context, return_dict=False)[0]
        return output

    step(0, first)  # the full one, which fills the cache
    return lambda: step(1, then)


def timesteps(scheduler_config: Mapping[str, Any]) -> tuple[int, int]:
    """The timesteps of the full step and of the cached one in `cached_step`."""
    scheduler = _ddim(scheduler_config)
    scheduler.set_timesteps(50)
    return int(scheduler.timesteps[0]), int(scheduler.timesteps[1])


def generation(
    unet: UNet, scheduler_config: Mapping[str, Any], every: int, branch: int, noise: Tensor, context: Tensor
) -> Callable[[], Tensor]:
    """A call that denoises in 50 DDIM steps, a full one every `every`, by `StableDiffusionPipeline` without guidance.

    noise (n, c, h, w), context (n, tokens, dim). Returns latents: neither text encoder nor VAE run.
    """
    from diffusers import StableDiffusionPipeline

    parts = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipeline = StableDiffusionPipeline(
        **dict.fromkeys(parts), unet=twin(unet), scheduler=_ddim(scheduler_config), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    helper = _helper(pipeline, every, branch)
    height, width = (pipeline.vae_scale_factor * side for side in noise.shape[-2:])

    def run() -> Tensor:
        helper.enable()  # anew for each image: the cache starts empty, as the first step of a trajectory must find it
        images = pipeline(
            prompt_embeds=context,
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=50,
            guidance_scale=1.0,
            output_type="latent",
        ).images
        helper.disable()
        return images

    return run


def _helper(pipeline: Any, every: int, branch: int) -> Any:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipeline)
    helper.set_params(cache_interval=every, cache_branch_id=branch - 1)
    return helper


def _ddim(config: Mapping[str, Any]) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(dict(config))
