"""How fast we are against the alternatives, as ratios measured side by side: bare times mean nothing on a shared machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from engine import rival, sampler, subject
from engine.anatomy import Anatomy
from engine.policy import Balanced
from engine.program import Program
from engine.stopwatch import Spread, side_by_side
from engine.subject import Subject
from engine.waves import Row, Waves
from registry.errors import InvalidInput

SAME = 1e-4  # two outputs closer than this are of the same work
FEW = 3  # pairs where one takes seconds


@dataclass(frozen=True)
class Line:
    """One result: what, its `unit` (× for a ratio), and the goal for the median, at most or at least. Without a spread the
    line was not measured, and `note` says why."""

    section: str
    what: str
    spread: Spread | None
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None without a goal or a measurement."""
        if self.spread is None or (self.at_most is None and self.at_least is None):
            return None
        low = self.at_least is None or self.spread.median >= self.at_least
        return low and (self.at_most is None or self.spread.median <= self.at_most)


def run(model: Path, sections: Sequence[str], repeats: int, threads: int, as_json: bool) -> None:
    """Measure these sections (all, if none is named) on a model folder, and print a table or one JSON object.

    repeats: pairs of measurements, fewer where one takes seconds. Raises `InvalidInput` for a section that there is not.
    """
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        raise InvalidInput(f"section: there is no {min(unknown)}; there are {', '.join(SECTIONS)}", param="section")
    if repeats < 1 or threads < 1:
        raise InvalidInput(f"repeats and threads: must be at least 1, got {repeats} and {threads}", param="repeats")
    torch.set_num_threads(threads)
    given, lines = subject.of_folder(model), list[Line]()
    progress = Console(stderr=True)
    for section in [name for name in SECTIONS if name in sections or not sections]:
        progress.print(f"measuring: {section}", style="dim")
        with torch.inference_mode():
            lines += SECTIONS[section](given, repeats)
    about = {
        "model": given.name,
        "torch": torch.__version__,
        "deepcache": rival.installed(),
        "threads": threads,
        "repeats": repeats,
    }
    if as_json:
        print(json.dumps({**about, "lines": [{**asdict(line), "met": line.met} for line in lines]}))  # noqa: T201
    else:
        _print(about, lines)


def steps(given: Subject, repeats: int) -> Iterator[Line]:
    """One full step against `unet(…)`, one partial step against DeepCache's, on one row and on eight."""
    for rows in (1, 8):
        yield from _steps("steps", given, rows, repeats)


def sd15(_: Subject, repeats: int) -> Iterator[Line]:
    """The same on Stable Diffusion v1.5's UNet."""
    big = subject.sd15()
    for rows in (1, 2):
        yield from _steps("sd15", big, rows, min(FEW, repeats), repeats)
    yield _generation("sd15", big, 1, 1, min(FEW, repeats))


def generation(given: Subject, repeats: int) -> Iterator[Line]:
    """Whole generations of 50 steps, every fifth one full, against DeepCache's in diffusers' pipeline."""
    for rows in (1, 8):
        for branch in (1, 2):
            yield _generation("generation", given, branch, rows, repeats)


def speedup(given: Subject, repeats: int) -> Iterator[Line]:
    """Wall-clock speed-up over the teacher, divided by the speed-up in MACs: 1 where no time is lost."""
    schedules = {
        "10 full + 40 partial, s=1": given.program(10, (1, 2, 3, 4), 1),
        "10 full + 10 partial, s=3": given.program(10, (2,), 3),
        "5 full + 5 partial, s=1": given.program(5, (5,), 1),
    }
    programs = [given.teacher, *schedules.values()]
    macs = [given.macs.of_program(program, 1) for program in programs]
    for rows in (1, 8):
        seconds = side_by_side([_ours(given, program, rows) for program in programs], repeats)
        for i, name in enumerate(schedules, start=1):
            wall = seconds[:, 0] / seconds[:, i]
            note = f"{Spread.of(wall).median:.2f}× by the clock, {macs[0] / macs[i]:.2f}× in MACs"
            what = f"speed-up by the clock / in MACs, {name}, {_rows(rows)}"
            yield Line("speedup", what, Spread.of(wall * macs[i] / macs[0]), at_least=0.97, note=note)


def overhead(given: Subject, repeats: int) -> Iterator[Line]:
    """Time of a wave around its UNet call: a whole generation in waves, with a UNet that computes nothing."""
    program, timestep = given.program(10, (1, 2, 3, 4), 1), torch.tensor(500.0)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        idle, real = Idle(given, rows), given.anatomy
        sample, condition, feature = given.noise(rows), given.condition(rows), idle.feature

        def waves(idle: Idle = idle, rows: int = rows) -> None:
            _in_waves(given, idle, program, rows)

        def partial(sample: Tensor = sample, condition: Any = condition, feature: Tensor = feature) -> None:
            real.partial(sample, timestep.expand(len(sample)), condition, 1, feature)

        seconds = side_by_side([waves, partial], repeats) / (len(program.steps), 1)
        share = Spread.of(seconds[:, 0] / seconds[:, 1]).median
        spread, note = Spread.of(1e3 * seconds[:, 0]), f"{share:.3f} of a partial step s=1 of as many rows"
        yield Line(
            "overhead", f"a wave without its UNet, {_rows(rows)}", spread, "ms", at_most=0.5 if rows == 32 else None, note=note
        )


def curve(given: Subject, repeats: int) -> Iterator[Line]:
    """What a row costs in a wave of many, against a row alone, for each kind of step."""
    anatomy, sizes = given.anatomy, (1, 2, 4, 8, 16, 32)
    samples, conditions = [given.noise(rows) for rows in sizes], [given.condition(rows) for rows in sizes]
    times = [torch.full((rows,), 500.0) for rows in sizes]
    inputs = list(zip(samples, times, conditions, strict=True))
    for branch in (0, 1, 2, 3):
        if branch == 0:
            runs = [lambda i=i: anatomy.full(*i) for i in inputs]
        else:
            features = [torch.randn(rows, *given.macs.features[branch]) for rows in sizes]
            runs = [lambda i=i, f=f, b=branch: anatomy.partial(*i, b, f) for i, f in zip(inputs, features, strict=True)]
        seconds = side_by_side(runs, repeats) / sizes
        for i, rows in enumerate(sizes[1:], start=1):
            note = f"{1e3 * Spread.of(seconds[:, i]).median:.2f} ms a row, alone {1e3 * Spread.of(seconds[:, 0]).median:.2f} ms"
            what = f"a row of {rows} / a row alone, {f'partial s={branch}' if branch else 'full'}"
            yield Line("curve", what, Spread.of(seconds[:, i] / seconds[:, 0]), note=note)


SECTIONS: dict[str, Callable[[Subject, int], Iterator[Line]]] = {
    "steps": steps,
    "generation": generation,
    "speedup": speedup,
    "overhead": overhead,
    "curve": curve,
    "sd15": sd15,
}


class Idle(Anatomy):
    """A UNet that computes nothing: outputs and features of the right shapes, made beforehand. Its attributes are a real one's,
    because looking them up is a wave's work too."""

    def __init__(self, given: Subject, rows: int) -> None:
        vars(self).update(vars(given.anatomy))
        self.output, self.feature = given.noise(rows), torch.randn(rows, *given.macs.features[1])

    def full(self, sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor, dict[int, Tensor]]:
        """Keeps the feature of branch 1."""
        return self.output[: len(sample)], {1: self.feature[: len(sample)]}

    def partial(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        """Ready at once."""
        return self.output[: len(sample)]
