"""The host's part of a wave: all that is not the device's, measured with a device that does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from benchmarks.engine.competitors import Field
from benchmarks.engine.result import FULL, BenchmarkResult
from benchmarks.engine.timing import side_by_side
from benchmarks.engine.workload import UniformSchedule, Workload
from engine.buckets import Buckets
from engine.denoising_task import DenoisingTask
from engine.graphs import Graph, Graphs, graphs_for
from engine.policy import Balanced
from engine.waves import Waves

ROWS = (1, 2, 4, 8, 16, 32, 64)
SILENT = "ours, without the device"
SCHEDULE = UniformSchedule(10, (1, 2, 3, 4), 1)
WAVE, OPERATIONS = "a wave", "operations of a wave"


class SilentGraphs(Graphs, Graph):
    """Graphs that do nothing: what is left of a wave is the host's part, table and upload included."""

    bytes = 0

    @override
    def capture(self, call: Callable[[], None]) -> Graph:
        return self

    @override
    def replay(self) -> None:
        pass


class CountedOperations(TorchDispatchMode):
    """Counts the operations that torch runs in the block, views too: on a GPU most of them are a kernel each."""

    count = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def host(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """The thread's seconds of a wave without its device's part, and how many operations a wave asks for with it and without."""
    workload = field.workload
    program = workload.program(SCHEDULE)
    for rows in ROWS:
        kinds: dict[str, Graphs | None] = {SILENT: SilentGraphs()}
        if captured := graphs_for(workload.model.device):
            kinds["ours, captured"] = captured
        for who, graphs in kinds.items():
            run = _in_waves(workload, rows, graphs)
            # The thread's own time: neither waiting for a device is part of it nor what others do on the machine.
            seconds = side_by_side([run], repeats, time.thread_time)[:, 0] / len(program.steps)
            yield BenchmarkResult("host", WAVE, rows, who, tuple(map(float, seconds)))
    for rows in (2, 32):
        for who, graphs in {"ours": None, SILENT: SilentGraphs()}.items():
            waves, _ = _filled(workload, rows, graphs)
            for what in (FULL, "partial step s=1"):
                with CountedOperations() as counted:
                    waves.tick()
                yield BenchmarkResult("host", f"{OPERATIONS}, {what}", rows, who, (float(counted.count),), unit="operations")


def _in_waves(workload: Workload, rows: int, graphs: Graphs | None) -> Callable[[], None]:
    """A call that makes a whole generation of `rows` images in waves of all of them, without guidance."""
    waves, fill = _filled(workload, rows, graphs)
    while waves.tick():
        pass

    def run() -> None:
        fill()
        behind = waves.launch()
        while behind is not None:
            wave = waves.launch()
            waves.land(behind)
            behind = wave

    return run


def _filled(workload: Workload, rows: int, graphs: Graphs | None) -> tuple[Waves[DenoisingTask], Callable[[], None]]:
    """Waves with `rows` images in flight, and what takes in as many again."""
    model, program = workload.model, workload.program(SCHEDULE)
    waves = Waves[DenoisingTask](model.network, model.slots(rows), Balanced(max_unet_rows=rows), Buckets((rows,)), graphs)
    for _ in waves.prepare({SCHEDULE.branch}):
        pass
    noise, condition = workload.noise(rows), workload.condition(rows)

    def fill() -> None:
        for i in range(rows):
            waves.add(DenoisingTask(program), noise[i], condition[i : i + 1])

    with torch.inference_mode():
        fill()
    return waves, fill
