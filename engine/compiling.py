"""torch.compile as this project uses it: in regions, which all kinds of step share, and for any number of rows.

Dynamo takes a function apart and Inductor makes kernels of it, at its first call and again for whatever it has not seen yet: a
size of 1, which it always counts as a constant, a tensor laid out differently, another mode of gradients. A region sees none
of the latter. So each is compiled twice for each size of images, for one row and for several, with a context of any length, and
after `warm` no call compiles anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.branches import all_branches, usual_branches
from engine.config import reason
from engine.items import Made
from registry.errors import Unsupported

if TYPE_CHECKING:
    from engine.image_size import ImageSize
    from engine.model import Model

CACHE = Path(".flexi/compile")
GRAPHS = (
    256  # of one size; to Dynamo, whose own limit is 8, all regions are one function. Past it a call raises, by `fullgraph`
)
CONTEXT = 3  # dimensions, which nothing else has that regions are given
DECODED = (8, 4, 2, 1)  # images in one call of the decoder: few, because each shape is planned, tuned or compiled once


@dataclass(frozen=True)
class Compiled:
    """What was compiled: graphs, those of them whose kernels came from the cache, and the seconds that all of them took."""

    graphs: int
    cached: int
    seconds: float


class Compilation:
    """Compiles a model's regions at their first calls. `backend`: torch's name of a compiler, or a test's own."""

    def __init__(self, backend: Any = "inductor") -> None:
        raise_limit()
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            cache_in(CACHE)
        # The mode is torch's default: what `reduce-overhead` adds, CUDA graphs, is captured by ourselves (`engine.graphs`).
        self._options: dict[str, Any] = {"backend": backend, "fullgraph": True, "dynamic": False}

    def region(self, part: Callable[..., Made], /) -> Callable[..., Made]:
        """The same function of tensors whose first dimension is rows, compiled. What has four dimensions is channels last."""

        def laid_out(*tensors: Tensor | None) -> Any:
            made: Any = part(*tensors)
            return tuple(map(_laid_out, made)) if isinstance(made, tuple) else _laid_out(made)

        compiled: Callable[..., Made] = torch.compile(laid_out, **self._options)

        @torch.inference_mode()
        def call(*tensors: Tensor | None) -> Made:
            return compiled(*(tensor if tensor is None else _alike(tensor) for tensor in tensors))

        return call

    def decoder(self, vae: Any) -> None:
        """Compile the decoder half of one of diffusers' autoencoders, in place."""
        vae.to(memory_format=torch.channels_last)
        eager, dtype = vae.decode, vae.dtype
        compiled = self.region(lambda latents: eager(latents, return_dict=False)[0])

        def decode(latents: Tensor, return_dict: bool = False) -> Any:
            if latents.dtype == dtype:
                return (compiled(latents),)
            del vae.decode  # it overflowed and has another type now: clients who wait should not wait for a compiler
            vae.to(memory_format=torch.contiguous_format)
            return vae.decode(latents, return_dict=return_dict)

        vae.decode = decode


@torch.inference_mode()
def warm(
    model: Model,
    max_rows: int,
    images: Iterable[int] = DECODED,
    others: Collection[ImageSize] = (),
    chunks: int = 1,
) -> Compiled:
    """Compile all that calls of at most `max_rows` rows will run, and the decoder for these numbers of images.

    That is at the model's own size and each of `others`, with contexts of up to `chunks` chunks, for which as a rule there is
    nothing left to compile after the first. One call of each kind, for 1, 2 and the most rows: where torch's
    choice of kernels changes with a number between the last two (convolutions of 16 rows on one CPU thread, more than 2^31
    elements), both are then there.
    Raises `Unsupported` for what torch cannot compile.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    raise_limit((1 + len(others)) * chunks)
    (graphs, cached), start = _counted(), time.monotonic()
    try:
        for size in (None, *others):
            with suppress(torch.OutOfMemoryError):  # nor will a server then run as many
                for length, rows in product(range(1, chunks + 1), (2, 1, max_rows)):
                    _run_steps(model, rows, size, length)
            with suppress(torch.OutOfMemoryError):
                for count in images:
                    model.decoder(_latents(model, count, size))
        model.network.fence().wait()
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        raise Unsupported(f"torch cannot compile this model: {reason(error)}; off runs it as it is", param="compile") from error
    graphs_now, cached_now = _counted()
    return Compiled(graphs_now - graphs, cached_now - cached, time.monotonic() - start)


def raise_limit(sizes: int = 1) -> None:
    """Let Dynamo compile as many graphs as there are. For each thread that compiles: its settings are a thread's own."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS * sizes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, GRAPHS * sizes)


def forbid() -> None:
    """From now on, a call that would compile anything raises instead, in every thread of this process."""
    torch.compiler.set_stance("fail_on_recompile")


def allow() -> None:
    """Undo `forbid`."""
    torch.compiler.set_stance("default")


def cache_in(folder: Path) -> None:
    """Keep what is compiled in this folder, and take it from there. To be called before anything is compiled.

    A cache is good for one version of torch, one kind of device and one set of sizes; what does not fit is compiled anew.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute())
    os.environ["TRITON_CACHE_DIR"] = str(folder.absolute() / "triton")


def cache_bytes(folder: Path) -> int:
    """Of all files in a cache."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _run_steps(model: Model, rows: int, size: ImageSize | None, chunks: int) -> None:
    """A full step, and a partial one of each branch; of a transformer's, whose blocks are compiled each on its own and the same
    in all of them, one that is held against, as to keep the features of all would take more memory than there is."""
    network, sample = model.network, _latents(model, rows, size)
    condition = model.encode([model.prompts.sample], size=size, chunks=chunks)
    given = sample, torch.ones(rows, device=model.device), condition.expand(rows)
    branches = network.branches
    keep = all_branches(branches) if isinstance(branches, int) else usual_branches(branches)[:1]
    _, features = network.full(*given, keep=keep)
    for branch, feature in features.items():
        network.partial(*given, branch, feature)


def _latents(model: Model, count: int, size: ImageSize | None) -> Tensor:
    return torch.zeros(count, *model.latent_shape_at(size), device=model.device)


def _alike(tensor: Tensor) -> Tensor:
    """The tensor as regions always see it, since they are compiled anew for any other kind: laid out as ever, an inference
    tensor, and marked as one whose rows, if several, are any number, and so are the tokens of a context.
    """
    tensor = _laid_out(tensor)
    tensor = tensor if tensor.is_inference() else tensor.clone()
    if len(tensor) > 1:
        torch._dynamo.mark_dynamic(tensor, 0)
    if tensor.ndim == CONTEXT and tensor.shape[1] > 1:
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    return tensor


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def _counted() -> tuple[int, int]:
    """Graphs that Dynamo made in this process, and those of them that were in the cache."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], counters["aot_autograd"]["autograd_cache_hit"]
