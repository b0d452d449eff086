"""All that one process needs to evaluate schedules: loaded once, whichever executor hands out the tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from engine.compile_choice import CompileChoice, compiles
from engine.compiling import raise_limit
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from engine.prompts import Prompts
from evaluation import Extractor, extractor
from registry.errors import InvalidInput
from registry.schedule import ModelRef, Schedule
from search_jobs.config import JobConfig, read_prompts
from search_jobs.memory import memory_of
from search_jobs.objective import Evaluation, Objective
from search_jobs.pieces import Pieces
from search_jobs.stages import RUNGS, Stage, fresh, halves, stages

LEDGER = "ledger.jsonl"


def prompts_of(file: str | Path | None, read: Prompts) -> list[str]:
    """What a model draws: the prompts of a file, else all its classes, else the empty prompt; two at least, to be split.

    Raises `InvalidInput` for a file that holds too few, and without one for a model that draws texts.
    """
    if file:
        return read_prompts(file)
    if read.reads_texts:
        raise InvalidInput("the model draws texts: name a file of such as your users write, one a line", param="prompts")
    drawn = list(read.classes) or [""]
    return drawn if len(drawn) > 1 else drawn * 2


def cut_prompts(read: Prompts, prompts: Iterable[str]) -> int:
    """How many prompts are not read to their end."""
    return sum(bool(read.cut(prompt)) for prompt in prompts)


class EvaluationTask(NamedTuple):
    """A schedule to be evaluated in a stage. fitting: with corrections fitted there, instead of as the schedule is."""

    stage: str
    schedule: Schedule
    fitting: bool


@dataclass
class Evaluator:
    """The model, the feature extractor, what fits into memory, and an objective for each stage that a task has named so far."""

    config: JobConfig
    folder: Path
    model: Model
    extractor: Extractor
    stages: dict[str, Stage]
    pieces: Pieces
    _objectives: dict[str, Objective] = field(default_factory=dict)

    @classmethod
    def open(cls, config: JobConfig, folder: Path) -> Evaluator:
        """Load what the configuration names. A search that goes on calls the model as its first measurements do."""
        model = opened(config.model, config.device, config.dtype, config.name, config.compiled)
        if (ref := _measured(folder)) and model.is_called(ref.fingerprint):
            model = replace(model, ref=ref)
        model.other_sizes(ImageSize.parse(size) for size in config.sizes)  # before anything is measured
        by_name = stages(config, prompts_of(config.prompts, model.prompts))
        return cls(config, folder, model, extractor(config.features, config.device), by_name, Pieces(memory_of(model.device)))

    def objective(self, stage: str, progress: Callable[[int], None] = lambda images: None) -> Objective:
        """The stage's objective, made on first use.

        The teacher's outputs are read from the run folder, or computed and kept there if there is such a folder; `progress`
        is called with the number of the teacher's images that were just finished.
        """
        if stage not in self._objectives:
            definition, config = self.stages[stage], self.config
            self._objectives[stage] = Objective(
                self.model,
                self.extractor,
                definition.sample,
                teacher_steps=config.teacher_steps,
                guidance=definition.guidance,
                batch=config.batch,
                together=config.together,
                fitting=definition.fitted,
                extrapolating=definition.extrapolated,
                bootstrap=definition.bootstrap,
                memory=config.share_mib << 20 if stage in RUNGS else 0,
                cache=self.folder / f"teacher-{stage}.pt" if self.folder.is_dir() else None,
                samples=self.folder / "samples" if stage == "held-out" and self.folder.is_dir() else None,
                progress=progress,
                pieces=self.pieces,
                size=None if definition.size is None else self.model.other_size(definition.size),
                mean=config.mean,
            )
        return self._objectives[stage]

    def fresh(
        self,
        images: int,
        bootstrap: bool = False,
        cache: Path | None = None,
        progress: Callable[[int], None] = lambda images: None,
        guidance: float | None = None,
    ) -> Objective:
        """Of so many images of noise that no search draws, on the prompts that none sees; the rest as `Objective` says.

        guidance: another scale than the search's own.
        """
        return Objective(
            self.model,
            self.extractor,
            fresh(halves(prompts_of(self.config.prompts, self.model.prompts))[1], images, 0),
            self.config.teacher_steps,
            self.config.guidance if guidance is None else guidance,
            bootstrap=bootstrap,
            cache=cache,
            progress=progress,
            pieces=self.pieces,
            mean=self.config.mean,
        )

    def prompts(self) -> dict[str, int]:
        """How many `prompts` are drawn, and how many of them are `cut` after the `tokens` that the model reads."""
        file, read = self.config.prompts, self.model.prompts
        prompts = prompts_of(file, read) if file or read.classes else []
        return {"prompts": len(prompts), "cut": cut_prompts(read, prompts), "tokens": read.tokens}

    def evaluate(self, tasks: Iterable[EvaluationTask]) -> Iterator[Evaluation]:
        """Generate the images of each task's stage with its schedule, and measure them; tasks of one stage together."""
        if self.model.network.channels_last:
            raise_limit(max(1, len(self.config.sizes)))  # here too: a worker of Dask's opens the model in another thread
        for (stage, fitting), alike in groupby(tasks, key=lambda task: (task.stage, task.fitting)):
            yield from self.objective(stage).evaluate_all([task.schedule for task in alike], fitting)


def opened(model: str, device: str, dtype: str, name: str | None, compiled: CompileChoice) -> Model:
    """The model, compiled where that is wanted."""
    return load(model, device, dtype, name, compiled=compiles(compiled, device))


def _measured(folder: Path) -> ModelRef | None:
    """What the first measurement of a run folder calls the model, which an earlier version may have called otherwise."""
    with suppress(OSError, ValueError, KeyError, TypeError), (folder / LEDGER).open() as lines:  # who reads it all says so
        return ModelRef.model_validate(json.loads(lines.readline())["schedule"]["model"])
    return None
