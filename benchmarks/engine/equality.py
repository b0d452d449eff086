"""Whether the device makes the images that the CPU makes, and waves those of the plain sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.engine.competitors import Field, Ours
from benchmarks.engine.result import BenchmarkResult
from benchmarks.engine.workload import GUIDANCE, UNIFORM, Workload
from engine import sampler
from engine.buckets import Buckets, dense
from engine.condition import Condition
from engine.denoising_task import DenoisingTask
from engine.graphs import Graph, Graphs, graphs_for
from engine.policy import FCFS
from engine.program import Program
from engine.waves import Waves
from registry.schedule import SolverName

SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++", "euler")
ROWS = 16  # UNet rows of the largest wave
DEVICE, WAVES, CAPTURED = "device − CPU", "waves − sampler", "captured − eager"


class EagerGraphs(Graphs):
    """Graphs where a device has none: calls are made again, which must come to the same."""

    bytes = 0

    @override
    def capture(self, call: Callable[[], None]) -> Graph:
        call()
        return _Again(call)


class _Again(Graph):
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    @override
    def replay(self) -> None:
        self._call()


def equality(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """The largest differences, relative to the largest latent: the last digits of float32, none where one was captured.

    TensorFloat-32 is off meanwhile.
    """
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        if field.workload.model.dtype == torch.float32:
            if field.workload.model.device.type != "cpu":
                yield from _against_the_cpu(field)
            yield from _waves_against_the_sampler(field.workload)
        for who in [who for who in field.all if isinstance(who, Ours) and not who.graphs]:
            yield from _captured_against_eager(who)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


def _against_the_cpu(field: Field) -> Iterator[BenchmarkResult]:
    """The same images by the plain sampler on the CPU, in float32."""
    plain = replace(field.source, device="cpu", dtype="float32").workload()
    for solver in SOLVERS:
        apart = []
        for program in _programs(field.workload, solver):
            latents = [_sampled(workload, program) for workload in (field.workload, plain)]
            apart.append(_apart(latents[1], latents[0].cpu()))
        yield _difference(DEVICE, 2, solver, max(apart))


def _waves_against_the_sampler(workload: Workload) -> Iterator[BenchmarkResult]:
    """Images of mixed schedules, every third one unguided, in padded waves, eager and captured; and each of them alone."""
    programs = [program for solver in SOLVERS[:2] for program in _programs(workload, solver)]
    for who, graphs in {"ours": None, "ours, captured": graphs_for(workload.model.device) or EagerGraphs()}.items():
        waves = Waves[DenoisingTask](workload.model.network, workload.model.slots(4 * ROWS), FCFS(ROWS), dense(ROWS), graphs)
        for _ in waves.prepare({uniform.branch for uniform in UNIFORM if workload.runs(uniform)} - {0}):
            pass
        noise, condition = workload.noise(ROWS), workload.condition(ROWS)
        guides = workload.model.prompts.guides
        tasks = [DenoisingTask(programs[i % len(programs)], GUIDANCE if guides and i % 3 else None) for i in range(ROWS)]
        for i, task in enumerate(tasks):
            waves.add(task, noise[i], condition[i : i + 1], _negative(condition) if task.guidance else None)
        while waves.tick():
            pass
        apart = 0.0
        for i, task in enumerate(tasks):
            negative, scale = (_negative(condition), GUIDANCE) if task.guidance else (None, 1.0)
            network = workload.model.network
            alone = sampler.generate(network, task.program, noise[i : i + 1], condition[i : i + 1], negative, scale)
            if task.latent is None:
                raise task.error or AssertionError("a task that never ended")
            apart = max(apart, _apart(alone[0], task.latent))
        yield _difference(WAVES, ROWS, who, apart)


def _captured_against_eager(ours: Ours) -> Iterator[BenchmarkResult]:
    """The steps of a segment in waves of each size, mostly padded, captured and not: all digits should be the same."""
    workload, uniform = ours.workload, next(uniform for uniform in UNIFORM if uniform.branch == 1)
    program = workload.program(uniform)
    program = replace(program, steps=program.steps[: 1 + len(uniform.offsets)])
    for rows in dense(ROWS).sizes:
        count = rows - 1 if rows > 2 else rows  # one row of padding
        made = []
        for graphs in (None, graphs_for(workload.model.device) or EagerGraphs()):
            waves = Waves[DenoisingTask](
                workload.model.network, workload.model.slots(rows), FCFS(rows), Buckets((rows,)), graphs
            )
            for _ in waves.prepare({uniform.branch}):
                pass
            tasks = [DenoisingTask(program) for _ in range(count)]
            for i, task in enumerate(tasks):
                waves.add(task, workload.noise(rows)[i], workload.condition(rows)[i : i + 1])
            while waves.tick():
                pass
            made.append(torch.stack([task.latent for task in tasks if task.latent is not None]))
        yield _difference(CAPTURED, rows, ours.name, _apart(*made))


def _programs(workload: Workload, solver: SolverName) -> Iterator[Program]:
    for uniform in filter(workload.runs, UNIFORM):
        yield workload.program(uniform, solver)


def _sampled(workload: Workload, program: Program) -> Tensor:
    guided = workload.model.prompts.guides
    condition = workload.condition(2)
    negative, scale = (_negative(condition, 2), GUIDANCE) if guided else (None, 1.0)
    return sampler.generate(workload.model.network, program, workload.noise(2), condition, negative, scale)


def _negative(condition: Condition, rows: int = 1) -> Condition:
    """Nothing: zeros."""
    return condition[:rows].map(torch.zeros_like)


def _apart(expected: Tensor, made: Tensor) -> float:
    """The largest difference, relative to the largest of what is expected."""
    return ((expected - made).abs().max() / expected.abs().max()).item()


def _difference(what: str, count: int, who: str, value: float) -> BenchmarkResult:
    return BenchmarkResult("equality", what, count, who, (value,), unit="")
