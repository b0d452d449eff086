"""What is measured: each section gives its measurements, one at a time, because some take minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.engine import deepcache
from benchmarks.engine.measurement import BenchmarkResult
from benchmarks.engine.noop_unet import NoopUNet
from benchmarks.engine.timing import Spread, side_by_side
from benchmarks.engine.workload import Workload, stable_diffusion_15
from engine import sampler
from engine.denoising_task import DenoisingTask
from engine.policy import Balanced
from engine.program import Program
from engine.unrolled import UnrolledUNet
from engine.waves import Waves

SAME_WORK = 1e-4  # two outputs closer than this are of the same work
FEW = 3  # pairs where one takes seconds


def steps(workload: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """One full step against `unet(…)`, one partial step against DeepCache's, on one row and on eight."""
    for rows in (1, 8):
        yield from _steps("steps", workload, rows, repeats, repeats)


def sd15(_: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """Steps and one generation on Stable Diffusion v1.5's UNet, whatever the model folder."""
    big = stable_diffusion_15()
    for rows in (1, 2):
        yield from _steps("sd15", big, rows, min(FEW, repeats), repeats)
    yield _generation("sd15", big, 1, 1, min(FEW, repeats))


def generation(workload: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """Whole generations of 50 steps, every fifth one full, against DeepCache's in diffusers' pipeline."""
    for rows in (1, 8):
        for branch in (1, 2):
            yield _generation("generation", workload, branch, rows, repeats)


def speedup(workload: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """Wall-clock speed-up over the teacher, divided by the speed-up in MACs: 1 where no time is lost."""
    schedules = {
        "10 full + 40 partial, s=1": workload.program(10, (1, 2, 3, 4), 1),
        "10 full + 10 partial, s=3": workload.program(10, (2,), 3),
        "5 full + 5 partial, s=1": workload.program(5, (5,), 1),
    }
    programs = [workload.teacher, *schedules.values()]
    macs = [workload.macs.of_program(program, 1) for program in programs]
    for rows in (1, 8):
        seconds = side_by_side([_ours(workload, program, rows) for program in programs], repeats)
        for i, name in enumerate(schedules, start=1):
            wall = seconds[:, 0] / seconds[:, i]
            note = f"{Spread.of(wall).median:.2f}× by the clock, {macs[0] / macs[i]:.2f}× in MACs"
            what = f"speed-up by the clock / in MACs, {name}, {_rows(rows)}"
            yield BenchmarkResult("speedup", what, Spread.of(wall * macs[i] / macs[0]), at_least=0.97, note=note)


def overhead(workload: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """Time of a wave around its UNet call: a whole generation in waves, with a UNet that computes nothing."""
    program, timestep = workload.program(10, (1, 2, 3, 4), 1), torch.tensor(500.0)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        noop = NoopUNet(workload, rows)
        sample, condition, feature = workload.noise(rows), workload.condition(rows), noop.feature
        waves = partial(_in_waves, workload, noop, program, rows)
        step = partial(workload.network.partial, sample, timestep.expand(rows), condition, 1, feature)
        seconds = side_by_side([waves, step], repeats) / (len(program.steps), 1)
        share = Spread.of(seconds[:, 0] / seconds[:, 1]).median
        spread, note = Spread.of(1e3 * seconds[:, 0]), f"{share:.3f} of a partial step s=1 of as many rows"
        yield BenchmarkResult(
            "overhead", f"a wave without its UNet, {_rows(rows)}", spread, "ms", at_most=0.5 if rows == 32 else None, note=note
        )


def curve(workload: Workload, repeats: int) -> Iterator[BenchmarkResult]:
    """What a row costs in a wave of many, against a row alone, for each kind of step."""
    network, sizes = workload.network, (1, 2, 4, 8, 16, 32)
    samples, conditions = [workload.noise(rows) for rows in sizes], [workload.condition(rows) for rows in sizes]
    timesteps = [torch.full((rows,), 500.0) for rows in sizes]
    inputs = list(zip(samples, timesteps, conditions, strict=True))
    for branch in (0, 1, 2, 3):
        if branch == 0:
            runs: list[Callable[[], object]] = [partial(network.full, *arguments) for arguments in inputs]
        else:
            features = [torch.randn(rows, *workload.macs.features[branch]) for rows in sizes]
            runs = [
                partial(network.partial, *arguments, branch, feature)
                for arguments, feature in zip(inputs, features, strict=True)
            ]
        seconds = side_by_side(runs, repeats) / sizes
        for i, rows in enumerate(sizes[1:], start=1):
            note = f"{1e3 * Spread.of(seconds[:, i]).median:.2f} ms a row, alone {1e3 * Spread.of(seconds[:, 0]).median:.2f} ms"
            what = f"a row of {rows} / a row alone, {f'partial s={branch}' if branch else 'full'}"
            yield BenchmarkResult("curve", what, Spread.of(seconds[:, i] / seconds[:, 0]), note=note)


def _steps(section: str, workload: Workload, rows: int, full_pairs: int, partial_pairs: int) -> Iterator[BenchmarkResult]:
    """A full step against the UNet's own forward, partial steps against DeepCache's, in so many pairs of measurements."""
    network, unet, condition = workload.network, workload.network.unet, workload.condition(rows)
    first, then = workload.noise(rows), workload.noise(rows + 1)[:rows]
    early, late = (torch.full((rows,), float(timestep)) for timestep in deepcache.timesteps(workload.scheduler))
    named = {} if condition.context is None else {"encoder_hidden_states": condition.context}
    seconds = side_by_side(
        [lambda: network.full(first, early, condition, keep={1}), lambda: unet(first, early, return_dict=False, **named)],
        full_pairs,
    )
    what = f"full step / unet(…), {_rows(rows)}"
    yield BenchmarkResult(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=1.0, note=workload.name)
    _, kept = network.full(first, early, condition, keep={1, 2})
    for branch in (1, 2):
        what = f"partial step s={branch} / DeepCache's, {_rows(rows)}"
        if deepcache.installed() is None or condition.context is None:
            yield BenchmarkResult(section, what, None, at_most=0.9, note=deepcache.ABSENT)
            continue
        theirs = deepcache.cached_step(unet, workload.scheduler, branch, first, then, condition.context)
        ours = partial(network.partial, then, late, condition, branch, kept[branch])
        apart = (ours() - theirs()).abs().max().item()
        note = f"outputs {apart:.0e} apart" if apart <= SAME_WORK else f"NOT THE SAME WORK: outputs {apart:.0e} apart"
        seconds = side_by_side([ours, theirs], partial_pairs)
        yield BenchmarkResult(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=0.9, note=note)


def _generation(section: str, workload: Workload, branch: int, rows: int, repeats: int) -> BenchmarkResult:
    """A whole generation of 50 steps, every fifth one full and the others partial of this branch, against DeepCache's."""
    what = f"50 steps, 10 of them full, rest s={branch} / DeepCache's, {_rows(rows)}"
    condition = workload.condition(rows)
    if deepcache.installed() is None or condition.context is None:
        return BenchmarkResult(section, what, None, at_most=0.9, note=deepcache.ABSENT)
    ours = _ours(workload, workload.program(10, (1, 2, 3, 4), branch), rows)
    theirs = deepcache.generation(workload.network.unet, workload.scheduler, 5, branch, workload.noise(rows), condition.context)
    apart = (ours() - theirs()).abs().max().item()
    seconds = side_by_side([ours, theirs], repeats)
    note = f"latents {apart:.0e} apart"
    return BenchmarkResult(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=0.9, note=note)


def _ours(workload: Workload, program: Program, rows: int) -> Callable[[], Tensor]:
    """A whole generation by the plain sampler, without guidance."""
    return partial(sampler.generate, workload.network, program, workload.noise(rows), workload.condition(rows))


def _in_waves(workload: Workload, network: UnrolledUNet, program: Program, rows: int) -> None:
    """A whole generation of `rows` images in waves of all of them, without guidance."""
    waves = Waves[DenoisingTask](network, workload.slots(rows), Balanced(max_unet_rows=rows))
    noise, condition = workload.noise(rows), workload.condition(rows)
    for i in range(rows):
        waves.add(DenoisingTask(program), noise[i], condition[i : i + 1])
    while waves.tick():
        pass


def _rows(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


SECTIONS: dict[str, Callable[[Workload, int], Iterator[BenchmarkResult]]] = {
    "steps": steps,
    "generation": generation,
    "speedup": speedup,
    "overhead": overhead,
    "curve": curve,
    "sd15": sd15,
}
