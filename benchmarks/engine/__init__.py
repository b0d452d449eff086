"""How fast we are against the alternatives, as ratios measured side by side: bare times mean nothing on a shared machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.engine import rival, subject
from benchmarks.engine.stopwatch import Spread, side_by_side
from benchmarks.engine.subject import Subject
from engine import sampler
from engine.policy import Balanced
from engine.program import Program
from engine.unrolled import UnrolledUNet
from engine.waves import DenoisingTask, Waves
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
        raise InvalidInput(f"there is no {min(unknown)}; there are {', '.join(SECTIONS)}", param="section")
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
        print(json.dumps({**about, "lines": [{**asdict(line), "met": line.met} for line in lines]}))
    else:
        _print(about, lines)


def steps(given: Subject, repeats: int) -> Iterator[Line]:
    """One full step against `unet(…)`, one partial step against DeepCache's, on one row and on eight."""
    for rows in (1, 8):
        yield from _steps("steps", given, rows, repeats, repeats)


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
        idle = Idle(given, rows)
        sample, condition, feature = given.noise(rows), given.condition(rows), idle.feature
        waves = partial(_in_waves, given, idle, program, rows)
        step = partial(given.network.partial, sample, timestep.expand(rows), condition, 1, feature)
        seconds = side_by_side([waves, step], repeats) / (len(program.steps), 1)
        share = Spread.of(seconds[:, 0] / seconds[:, 1]).median
        spread, note = Spread.of(1e3 * seconds[:, 0]), f"{share:.3f} of a partial step s=1 of as many rows"
        yield Line(
            "overhead", f"a wave without its UNet, {_rows(rows)}", spread, "ms", at_most=0.5 if rows == 32 else None, note=note
        )


def curve(given: Subject, repeats: int) -> Iterator[Line]:
    """What a row costs in a wave of many, against a row alone, for each kind of step."""
    network, sizes = given.network, (1, 2, 4, 8, 16, 32)
    samples, conditions = [given.noise(rows) for rows in sizes], [given.condition(rows) for rows in sizes]
    times = [torch.full((rows,), 500.0) for rows in sizes]
    inputs = list(zip(samples, times, conditions, strict=True))
    for branch in (0, 1, 2, 3):
        if branch == 0:
            runs: list[Callable[[], object]] = [partial(network.full, *i) for i in inputs]
        else:
            features = [torch.randn(rows, *given.macs.features[branch]) for rows in sizes]
            runs = [partial(network.partial, *i, branch, f) for i, f in zip(inputs, features, strict=True)]
        seconds = side_by_side(runs, repeats) / sizes
        for i, rows in enumerate(sizes[1:], start=1):
            note = f"{1e3 * Spread.of(seconds[:, i]).median:.2f} ms a row, alone {1e3 * Spread.of(seconds[:, 0]).median:.2f} ms"
            what = f"a row of {rows} / a row alone, {f'partial s={branch}' if branch else 'full'}"
            yield Line("curve", what, Spread.of(seconds[:, i] / seconds[:, 0]), note=note)


def _steps(section: str, given: Subject, rows: int, repeats: int, more: int) -> Iterator[Line]:
    """A full step against the UNet's own forward (`repeats` pairs), partial steps against DeepCache's (`more` pairs)."""
    network, unet, condition = given.network, given.network.unet, given.condition(rows)
    first, then = given.noise(rows), given.noise(rows + 1)[:rows]
    early, late = (torch.full((rows,), float(timestep)) for timestep in rival.timesteps(given.scheduler))
    named = {} if condition.context is None else {"encoder_hidden_states": condition.context}
    seconds = side_by_side(
        [lambda: network.full(first, early, condition, keep={1}), lambda: unet(first, early, return_dict=False, **named)],
        repeats,
    )
    what = f"full step / unet(…), {_rows(rows)}"
    yield Line(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=1.0, note=given.name)
    _, kept = network.full(first, early, condition, keep={1, 2})
    for branch in (1, 2):
        what = f"partial step s={branch} / DeepCache's, {_rows(rows)}"
        if rival.installed() is None or condition.context is None:
            yield Line(section, what, None, at_most=0.9, note=rival.ABSENT)
            continue
        theirs = rival.cached_step(unet, given.scheduler, branch, first, then, condition.context)
        ours = partial(network.partial, then, late, condition, branch, kept[branch])
        apart = (ours() - theirs()).abs().max().item()
        note = f"outputs {apart:.0e} apart" if apart <= SAME else f"NOT THE SAME WORK: outputs {apart:.0e} apart"
        seconds = side_by_side([ours, theirs], more)
        yield Line(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=0.9, note=note)


def _generation(section: str, given: Subject, branch: int, rows: int, repeats: int) -> Line:
    what = f"50 steps, 10 of them full, rest s={branch} / DeepCache's, {_rows(rows)}"
    condition = given.condition(rows)
    if rival.installed() is None or condition.context is None:
        return Line(section, what, None, at_most=0.9, note=rival.ABSENT)
    ours = _ours(given, given.program(10, (1, 2, 3, 4), branch), rows)
    theirs = rival.generation(given.network.unet, given.scheduler, 5, branch, given.noise(rows), condition.context)
    apart = (ours() - theirs()).abs().max().item()
    seconds = side_by_side([ours, theirs], repeats)
    return Line(section, what, Spread.of(seconds[:, 0] / seconds[:, 1]), at_most=0.9, note=f"latents {apart:.0e} apart")


def _ours(given: Subject, program: Program, rows: int) -> Callable[[], Tensor]:
    """The plain sampler, without guidance."""
    return partial(sampler.generate, given.network, program, given.noise(rows), given.condition(rows))


def _in_waves(given: Subject, network: UnrolledUNet, program: Program, rows: int) -> None:
    waves = Waves[DenoisingTask](network, given.slots(rows), Balanced(max_unet_rows=rows))
    noise, condition = given.noise(rows), given.condition(rows)
    for i in range(rows):
        waves.add(DenoisingTask(program), noise[i], condition[i : i + 1])
    while waves.tick():
        pass


def _rows(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


def _print(about: Mapping[str, Any], lines: Sequence[Line]) -> None:
    table = Table(title=", ".join(f"{name} {value}" for name, value in about.items()))
    for column in ("what", "median", "10–90 %", "goal", "", "note"):
        table.add_column(column, justify="right" if column in ("median", "10–90 %", "goal") else "left", overflow="fold")
    for i, line in enumerate(lines):
        goal = f"≤ {line.at_most}" if line.at_most is not None else f"≥ {line.at_least}" if line.at_least is not None else ""
        met = {None: "", True: "met", False: "missed"}[line.met]
        last = i + 1 == len(lines) or lines[i + 1].section != line.section
        spread = line.spread
        values = ("–", "") if spread is None else (f"{spread.median:.3f} {line.unit}", f"{spread.low:.3f}–{spread.high:.3f}")
        table.add_row(line.what, *values, goal, met, line.note, end_section=last)
    Console(width=160).print(table)


SECTIONS: dict[str, Callable[[Subject, int], Iterator[Line]]] = {
    "steps": steps,
    "generation": generation,
    "speedup": speedup,
    "overhead": overhead,
    "curve": curve,
    "sd15": sd15,
}


class Idle(UnrolledUNet):
    """A UNet that computes nothing: outputs and features of the right shapes, made beforehand. Its attributes are a real one's,
    because looking them up is a wave's work too."""

    def __init__(self, given: Subject, rows: int) -> None:
        vars(self).update(vars(given.network))
        self.output, self.feature = given.noise(rows), torch.randn(rows, *given.macs.features[1])

    def full(self, sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor, dict[int, Tensor]]:
        """Keeps the feature of branch 1."""
        return self.output[: len(sample)], {1: self.feature[: len(sample)]}

    def partial(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        """Ready at once."""
        return self.output[: len(sample)]
