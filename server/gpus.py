"""The GPUs that this process may use, counted without CUDA: who starts that in a process keeps every GPU that it sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pynvml

from registry.errors import InvalidInput

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str] = os.environ, found: Callable[[], Sequence[str]] | None = None) -> list[str]:
    """Each as CUDA_VISIBLE_DEVICES names it: what the operator wrote there (indices, UUIDs, MIG names), or else all UUIDs.

    Like CUDA, it reads no further than an index below zero. found: the machine's, by NVML without it. Raises `InvalidInput` for
    a GPU that is named twice, and where NVML does not work.
    """
    named = environment.get(VISIBLE)
    if named is None:
        return list((found or machine_gpus)())
    gpus = list[str]()
    for gpu in map(str.strip, named.split(",")):
        if not gpu or gpu.startswith("-"):
            break
        if gpu in gpus:
            raise InvalidInput(f"names {gpu} twice; each worker gets a GPU of its own, got {named!r}", param=VISIBLE)
        gpus.append(gpu)
    return gpus


def gpus_of_workers(device: str, workers: int, visible: Callable[[], Sequence[str]] = visible_gpus) -> list[str]:
    """The GPUs of which each worker gets one; none where all share a device: an only worker, `cuda:3` or a CPU.

    Raises `InvalidInput` where there are too few.
    """
    if device != "cuda" or workers == 1:
        return []
    if workers > len(gpus := visible()):
        number = f"{len(gpus)} GPU" + "s" * (len(gpus) != 1)
        raise InvalidInput(
            f"with FLEXI_DEVICE=cuda each worker gets a GPU of its own, and this process sees {number}: give at most as many "
            f"workers as GPUs (FLEXI_DEVICE=cuda:0 puts all workers on one), got {workers}",
            param="workers",
        )
    return list(gpus)


def machine_gpus() -> list[str]:
    """The UUIDs of the machine's GPUs, and of their parts where they are divided (MIG). Raises `InvalidInput` without NVML."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise InvalidInput(f"the GPUs cannot be counted: {error}; name them in {VISIBLE}", param="workers") from error
    try:
        return [uuid for index in range(pynvml.nvmlDeviceGetCount()) for uuid in _of_card(index)]
    finally:
        pynvml.nvmlShutdown()


def _of_card(index: int) -> Iterator[str]:
    """Of one GPU, or of its parts; nothing of one that is lost."""
    with suppress(pynvml.NVMLError_GpuIsLost):
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        parts = list(_parts(card))
        yield from parts or [str(pynvml.nvmlDeviceGetUUID(card))]


def _parts(card: Any) -> Iterator[str]:
    try:
        divided, _ = pynvml.nvmlDeviceGetMigMode(card)
    except pynvml.NVMLError_NotSupported:
        return
    if divided != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    for part in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(pynvml.NVMLError_NotFound):
            yield str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, part)))
