"""What holds of a transformer's steps whichever family it is of, with diffusers' own as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from engine.condition import Condition
from engine.denoiser import Denoiser
from registry.schedule import Blocks

Inputs = tuple[Tensor, Tensor, Condition]


def is_first_block_cache(
    module: nn.Module, network: Denoiser, own: Callable[..., Tensor], inputs: Callable[[int], Inputs]
) -> None:
    """1+0 is diffusers' FirstBlockCache, with a threshold that every later call is below.

    own: a module's forward of inputs. These classes have no `cache_context`, so they borrow the mixin's.
    """
    cached: Any = deepcopy(module)
    first = Blocks(1, 0)
    apply_first_block_cache(cached, FirstBlockCacheConfig(threshold=1e9))
    HookRegistry.check_if_exists_or_initialize(cached)
    with CacheMixin.cache_context(cached, "rows"):
        full, partial = (own(cached, *inputs(seed)) for seed in (1, 2))
    got, kept = network.full(*inputs(1), keep=[first])
    assert torch.equal(got, full)
    got = network.partial(*inputs(2), first, kept[first])
    torch.testing.assert_close(got, partial, rtol=0, atol=1e-6)
    assert not torch.allclose(partial, own(module, *inputs(2)), atol=1e-3), "or nothing was cached"


def rows_are_alone(network: Denoiser, inputs: Inputs, branch: Blocks, rtol: float = 0.0, atol: float = 1e-5) -> None:
    """Each row's prediction and residual are those that it has in a call of its own."""
    sample, timesteps, condition = inputs
    together, kept = network.full(sample, timesteps, condition, keep=[branch])
    for row in range(len(sample)):
        only = slice(row, row + 1)
        alone, own_kept = network.full(sample[only], timesteps[only], condition[only], keep=[branch])
        torch.testing.assert_close(alone, together[only], rtol=0, atol=atol)
        torch.testing.assert_close(own_kept[branch], kept[branch][only], rtol=rtol, atol=atol)
