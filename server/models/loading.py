"""A model into memory, as the settings say, and why that was not possible."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import torch

from engine import compiling
from engine.config import reason
from engine.device import lost
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from engine.prompt_syntax import PLAIN
from registry.errors import FlexiError, InvalidInput
from server.config import Settings, refusal
from server.telemetry import metrics

log = logging.getLogger(__name__)

TEACHER_STEPS = 50  # of a model that was not distilled
SHARE = 0.9  # of the device's memory, which models may take where nobody says how much


def load_first(settings: Settings) -> Model:
    """The default model, with all that is set once for a process. Raises what `engine.loading.load` raises."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.compiled:
        compiling.cache_in(settings.compile_cache)
    model = read(settings, settings.model, settings.model_name, compiled=settings.compiled)
    fields = {"model": model.ref.name, "fingerprint": model.ref.fingerprint, "device": str(model.device)}
    log.info("loaded", extra={"fields": fields | {"commit": settings.commit}})
    return model


def read(settings: Settings, folder: str | Path, name: str | None, compiled: bool = False, weights: bool = True) -> Model:
    """A folder's model, on the devices and in the type that are set. Raises what `engine.loading.load` raises."""
    return load(folder, settings.device, settings.dtype, name, compiled, weights, settings.text_device)


def other_sizes(settings: Settings, model: Model) -> list[ImageSize]:
    """Those beside the model's own that requests may ask for.

    Raises `InvalidInput` for one that the model cannot make; of several models, one may do without sizes of the others.
    """
    sizes = []
    for size in settings.sizes:
        try:
            sizes += model.other_sizes([size])
        except InvalidInput as error:
            if not settings.models:
                raise InvalidInput(error.text, param="sizes") from error
            log.warning("%s does not make %s: %s", model.ref.name, size, error.text)
    return list(dict.fromkeys(sizes))


def prompt_chunks(settings: Settings, model: Model) -> int:
    """The most that a prompt may take. Raises `InvalidInput` for a syntax that the only model's prompts do not have."""
    if settings.prompt_syntax != PLAIN and not model.prompts.takes_chunks and not settings.models:
        why = "T5 reads this model's texts" if model.prompts.reads_texts else "the prompts of this model are no texts"
        raise InvalidInput(f"must be plain: {why}", param="prompt_syntax")
    return settings.prompt_chunks if model.prompts.takes_chunks else 1


def compile_model(settings: Settings, model: Model, others: Collection[ImageSize] = (), chunks: int = 1) -> None:
    """All that will ever run, so that nobody waits for a compiler later: what it missed is an error from now on."""
    compiled = compiling.warm(model, settings.max_wave_rows, others=others, chunks=chunks)
    size = compiling.cache_bytes(settings.compile_cache)
    compiling.forbid()
    metrics.compile_seconds.set(compiled.seconds)
    metrics.compiled_graphs.labels("hit").set(compiled.cached)
    metrics.compiled_graphs.labels("miss").set(compiled.graphs - compiled.cached)
    metrics.compile_cache_bytes.set(size)
    fields = {"graphs": compiled.graphs, "cached": compiled.cached, "seconds": round(compiled.seconds, 1), "cache_bytes": size}
    log.info("compiled", extra={"fields": fields})


def teacher_steps(settings: Settings, model: Model) -> int:
    """Of the `reference` that is made up here: what is set, or what a distilled model was taught."""
    steps = settings.teacher_steps or model.few_steps or TEACHER_STEPS
    if model.few_steps and steps != model.few_steps:
        taught = f"the model was distilled to {model.few_steps}: `reference` is not the model as it was meant"
        log.warning("FLEXI_TEACHER_STEPS is %d, and %s", steps, taught)
    return steps


def memory_for_models(settings: Settings) -> int:
    """Bytes for the models of a server."""
    if settings.models_mib is not None:
        return settings.models_mib * 2**20
    if settings.device.startswith("cuda"):
        return int(SHARE * torch.cuda.mem_get_info(settings.device)[1])
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def why(error: Exception) -> str:
    """Why the app could not be opened, in one line; what nobody expected is logged with its traceback."""
    if isinstance(error, FlexiError):
        return refusal(error)
    if lost(error):
        return f"the device is lost: {reason(error)}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"the model and its slots need more memory than there is: {reason(error)}"
    log.error("the server cannot start", exc_info=error)
    return f"{type(error).__name__}: {reason(error)}"
