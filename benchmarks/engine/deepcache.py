"""DeepCache (PyPI deepcache, arXiv 2312.00858), driven as its authors would: what our partial steps are held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from engine.items import UNet


def installed() -> str | None:
    """The version of DeepCache that is installed (`pip install --no-deps deepcache==0.1.1`), None without it."""
    try:
        return version("deepcache")
    except PackageNotFoundError:
        return None


def twin(unet: UNet) -> Any:
    """A copy of the modules around the same weights: DeepCache replaces the modules' `forward`, and ours stay as they are."""
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})


def cached_step(
    unet: UNet, scheduler_config: Mapping[str, Any], branch: int, first: Tensor, then: Tensor, named: Mapping[str, Any]
) -> Callable[[], Tensor]:
    """A call that runs DeepCache's cached step on `then`, after one full step on `first`: latents (rows, c, h, w).

    Both are steps of a 50-step DDIM trajectory, the second (`timesteps`) and the first. named: the UNet's other arguments.
    Returns the prediction.
    """
    theirs, scheduler = twin(unet), ddim(scheduler_config)
    scheduler.set_timesteps(50)
    helper = _helper(SimpleNamespace(unet=theirs, scheduler=scheduler), every=50, branch=branch)
    helper.enable()

    def step(index: int, latent: Tensor) -> Tensor:
        output: Tensor = theirs(latent, scheduler.timesteps[index], return_dict=False, **named)[0]
        return output

    step(0, first)  # the full one, which fills the cache
    return lambda: step(1, then)


def timesteps(scheduler_config: Mapping[str, Any]) -> tuple[int, int]:
    """The timesteps of the full step and of the cached one in `cached_step`."""
    scheduler = ddim(scheduler_config)
    scheduler.set_timesteps(50)
    return int(scheduler.timesteps[0]), int(scheduler.timesteps[1])


def accelerated(pipeline: Any, every: int, branch: int, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run`, which calls the pipeline, with a full step every `every` steps and cached ones of this branch in between."""
    helper = _helper(pipeline, every, branch)

    def wrapped() -> Tensor:
        helper.enable()  # anew for each run: the cache starts empty, as the first step of a trajectory must find it
        try:
            return run()
        finally:
            helper.disable()

    return wrapped


def _helper(pipeline: Any, every: int, branch: int) -> Any:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipeline)
    helper.set_params(cache_interval=every, cache_branch_id=branch - 1)
    return helper


def ddim(config: Mapping[str, Any]) -> Any:
    """diffusers' DDIM on the noise levels of any scheduler; nothing is clipped unless it says so."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config({"clip_sample": False, **config})
