"""What is measured, in order of importance: each section gives its results one at a time, because some take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.engine.competitors import Competitor, Field, Run
from benchmarks.engine.equality import equality
from benchmarks.engine.host import host
from benchmarks.engine.images import images
from benchmarks.engine.result import FULL, TEACHER, BenchmarkResult, partial_step
from benchmarks.engine.timing import settled, side_by_side
from benchmarks.engine.workload import STEPS, UNIFORM, UniformSchedule
from registry.foreign_errors import one_line

SAME_WORK = 0.02  # steps whose outputs differ by more, for the largest, do not do the same; float16 makes about 0.002
ROWS = (1, 2, 4, 8, 16, 32)
BRANCHES = (1, 2, 3)
COUNTS = (1, 8)  # images of a generation
FEW = 3  # repeats of what takes seconds


@dataclass(frozen=True)
class _Entry:
    """A call that takes part in a group of results that are measured side by side."""

    what: str
    who: str
    macs: int
    make: Callable[[], Run | None]


def compile_times(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """Seconds of the first calls of those who compile. Whoever is not done when this ends does not compete any more."""
    waiting = [competitor for competitor in field.all if competitor.compiled]
    try:
        while waiting:
            competitor = waiting[0]
            for what, rows, make in _first_calls(competitor):
                start, note, values = time.perf_counter(), "", tuple[float, ...]()
                try:
                    if (run := make()) is None:
                        continue
                    run()
                    field.workload.model.network.fence().wait()
                    values = (time.perf_counter() - start,)
                except Exception as error:
                    note = f"failed: {one_line(error)}"
                yield BenchmarkResult("compile", f"{what}, first call", rows, competitor.name, values, note=note)
                if note:
                    field.all.remove(competitor)
                    break
            waiting.pop(0)
    finally:
        field.all[:] = [competitor for competitor in field.all if competitor not in waiting]


def _first_calls(competitor: Competitor) -> Iterator[tuple[str, int, Callable[[], Run | None]]]:
    for rows in (2, 1, 16, max(ROWS)):  # one row is a size of its own to torch, and the most may be another
        yield FULL, rows, partial(competitor.full, rows)
        for branch in BRANCHES:
            yield partial_step(branch), rows, partial(competitor.partial, rows, branch)
    for count in COUNTS:
        yield TEACHER, count, partial(competitor.generation, UniformSchedule(STEPS), count)


def steps(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """Full and partial steps of everybody, by number of rows."""
    macs = field.workload.macs
    for rows in ROWS:
        entries = [_Entry(FULL, who.name, rows * macs.full.macs, partial(who.full, rows)) for who in field.all]
        for branch in BRANCHES:
            if branch in macs.partial:
                cost = rows * macs.partial[branch].macs
                entries += [
                    _Entry(partial_step(branch), who.name, cost, partial(who.partial, rows, branch)) for who in field.all
                ]
        yield from _group(field, "steps", rows, entries, repeats)


def generations(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
    """Whole generations of everybody, of one image and of eight: all 50 steps full, and schedules."""
    for count in COUNTS:
        entries = []
        for uniform in filter(field.workload.runs, UNIFORM):
            macs = count * _image_macs(field, uniform)
            entries += [_Entry(uniform.name, who.name, macs, partial(who.generation, uniform, count)) for who in field.all]
        yield from _group(field, "generations", count, entries, min(FEW, repeats))


def _image_macs(field: Field, uniform: UniformSchedule) -> int:
    rows = 2 if field.workload.model.prompts.guides else 1
    return field.workload.macs.of_program(field.workload.program(uniform), rows)


def _group(field: Field, section: str, count: int, entries: list[_Entry], repeats: int) -> Iterator[BenchmarkResult]:
    """All that can be done of these, side by side. Whoever fails is left out, with the reason."""
    chosen, firsts, clock = list[tuple[_Entry, Run, str]](), list[float](), settled(field.workload.model.device)
    outputs: dict[str, Tensor] = {}
    for entry in entries:
        try:
            if (run := entry.make()) is None:
                continue
            start = clock()
            output = run()
            firsts.append(clock() - start)
        except Exception as error:
            yield BenchmarkResult(section, entry.what, count, entry.who, (), entry.macs, note=f"failed: {one_line(error)}")
            continue
        output = output.float().clone()
        first = outputs.setdefault(entry.what, output)
        chosen.append((entry, run, "" if first is output else _apart(first, output, section)))
    seconds = side_by_side([run for _, run, _ in chosen], repeats, clock, firsts)
    for i, (entry, _, note) in enumerate(chosen):
        yield BenchmarkResult(section, entry.what, count, entry.who, tuple(map(float, seconds[:, i])), entry.macs, note=note)


def _apart(first: Tensor, other: Tensor, section: str) -> str:
    """How far two outputs are from each other, for the largest of the first."""
    apart = ((first - other).abs().max() / first.abs().max()).item()
    if apart > SAME_WORK:
        return "other timesteps" if section == "generations" else f"NOT THE SAME WORK: {apart:.0e} from ours"
    return f"{apart:.0e} from ours" if apart else "the same digits"


SECTIONS: dict[str, Callable[[Field, int], Iterator[BenchmarkResult]]] = {
    "compile": compile_times,
    "steps": steps,
    "generations": generations,
    "host": host,
    "images": images,
    "equality": equality,
}
