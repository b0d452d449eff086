"""The search job: ask, evaluate, tell, until the generations are done; then its tiers on prompts and noise it never saw."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Protocol

from engine.models import Model, load
from registry.errors import InvalidInput
from registry.schedule import Schedule
from search_jobs.baselines import all_baselines
from search_jobs.config import JobConfig, read_prompts
from search_jobs.features import Clip
from search_jobs.ledger import Ledger
from search_jobs.objective import Measure, Objective, Sample, save_samples
from search_jobs.optimiser import Evolution, Point
from search_jobs.results import Choice, Results
from search_jobs.space import Genome, Space

CONFIG = "config.json"


class Progress(Protocol):
    """Who wants to see how far the job is. Work is counted in images."""

    def stage(self, name: str, images: int) -> None:
        """A stage of about `images` images begins."""

    def advance(self, images: int) -> None:
        """So many more images of the stage are done."""


class Job:
    """One run folder: config.json, ledger.jsonl, the teacher's images, and at the end report.json."""

    def __init__(self, config: JobConfig, folder: Path, progress: Progress) -> None:
        """Load the model; the folder is this job's once all inputs were found good.

        Raises `InvalidInput` when the folder belongs to a job with another configuration.
        """
        self.config, self.folder, self.progress = config, folder, progress
        self.prompts = read_prompts(config.prompts)
        self._refuse_foreign_folder()
        self.model: Model = load(config.model, config.device, config.dtype)
        self.clip = Clip(config.features)
        high = min(config.max_segments, config.teacher_steps)
        self.space = Space(
            model=self.model.ref,
            levels=self.model.levels,
            branches=self.model.anatomy.branches,
            teacher_steps=config.teacher_steps,
            segments=(min(3, high), high),
            max_partial=config.max_partial,
            retime=config.retime,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config.model_dump(mode="json"))  # now that every input was found good
        self.baselines = list(all_baselines(self.space))
        self.ledger = Ledger(folder / "ledger.jsonl")

    def run(self) -> dict[str, Any]:
        """Search, measure, write report.json and return it. Run again on the same folder, it goes on where it stopped."""
        started = datetime.now(UTC)
        search, finals, heldout = self._samples()
        history = self._search(self._objective("search", search))
        choices = self._decide(self._objective("finals", finals), history)
        final = self._objective("held-out", heldout, samples=self.folder / "samples")
        save_samples(self.folder / "samples" / "teacher.npy", final.reference)
        self._measure_all("held-out", final, [s for choice in choices.values() for s in choice.schedules()])
        report = Results(
            str(self.folder),
            self.config,
            self.model,
            self.space,
            self.baselines,
            self.ledger,
            history,
            choices,
            final,
            started,
        ).document()
        write_json(self.folder / "report.json", report)
        return report

    def _search(self, objective: Objective) -> list[Point]:
        config = self.config
        initial = [self.space.genome(baseline.schedule) for baseline in self.baselines]
        evolution = Evolution(
            self.space,
            initial,
            cost_of=lambda genome: objective.relative(self.model.compile(self.space.schedule(genome))),
            budgets=list(config.tiers.values()),
            population=config.population,
            seed=config.seed,
        )
        self.progress.stage("search", (len(set(initial)) + config.generations * config.population) * config.images)
        while evolution.generation <= config.generations:
            points = []
            for genome in evolution.ask():
                measure = self.measure("search", objective, self.space.schedule(genome))
                points.append(Point(genome, measure.cost, measure.loss))
            evolution.tell(points)
        return evolution.history

    def _decide(self, objective: Objective, history: list[Point]) -> dict[str, Choice]:
        """Each tier's finalists, on noise they were not picked by: luck in the search does not win twice.

        Finalists are the points of smallest loss under the tier's ceiling, and as many of the baselines there, so that
        no tier is worse than what can be set by hand, as far as these images tell.
        """
        by_hand = {self.space.genome(baseline.schedule): baseline for baseline in self.baselines}
        entered = {tier: self._finalists(history, tier, set(by_hand)) for tier in self.config.tiers}
        schedules = {genome: self.space.schedule(genome) for genomes in entered.values() for genome in genomes}
        measured = self._measure_all("finals", objective, list(schedules.values()))
        choices = {}
        for tier, genomes in entered.items():
            ranked = sorted(genomes, key=lambda genome: measured[schedules[genome].digest].loss)
            rivals = [by_hand[genome] for genome in ranked if genome in by_hand]
            choices[tier] = Choice(schedules[ranked[0]], rivals[0] if rivals else None, self.config.tiers[tier])
        return choices

    def _finalists(self, history: list[Point], tier: str, by_hand: set[Genome]) -> list[Genome]:
        ceiling, count = self.config.tiers[tier], self.config.finalists
        affordable = sorted((point for point in history if point.cost <= ceiling), key=lambda p: p.loss)
        if not affordable:
            cheapest = min(point.cost for point in history)
            raise InvalidInput(f"tiers.{tier}: nothing costs at most {ceiling}; the cheapest is {cheapest:.3f}", param="tiers")
        best = [point.genome for point in affordable]
        return list(dict.fromkeys(best[:count] + [genome for genome in best if genome in by_hand][:count]))

    def _measure_all(self, stage: str, objective: Objective, schedules: list[Schedule]) -> dict[str, Measure]:
        distinct = {schedule.digest: schedule for schedule in schedules}
        self.progress.stage(stage, len(distinct) * len(objective.noise))
        return {digest: self.measure(stage, objective, schedule) for digest, schedule in distinct.items()}

    def measure(self, stage: str, objective: Objective, schedule: Schedule) -> Measure:
        """From the ledger if it is there, else generated and written to the ledger."""
        key = f"{stage}/{schedule.digest}"
        measure = self.ledger.get(key)
        if measure is None:
            measure = objective.evaluate(schedule)
            self.ledger.add(key, measure)
        else:
            self.progress.advance(measure.images)
        return measure

    def _objective(self, stage: str, sample: Sample, samples: Path | None = None) -> Objective:
        self.progress.stage(f"teacher, {stage}", len(sample.seeds))
        return Objective(
            self.model,
            self.clip,
            sample,
            teacher_steps=self.config.teacher_steps,
            guidance=self.config.guidance,
            batch=self.config.batch,
            cache=self.folder / f"teacher-{stage}.pt",
            samples=samples,
            progress=self.progress.advance,
        )

    def _samples(self) -> tuple[Sample, Sample, Sample]:
        """Three samples of different noise; the held-out one shares no prompt with the others either."""
        prompts, config = list(self.prompts), self.config
        Random(config.seed).shuffle(prompts)
        half = len(prompts) // 2
        return (
            Sample.draw(prompts[:half], config.images, 3 * config.seed + 1),
            Sample.draw(prompts[:half], config.finals, 3 * config.seed + 2),
            Sample.draw(prompts[half:], config.heldout, 3 * config.seed + 3),
        )

    def _refuse_foreign_folder(self) -> None:
        path = self.folder / CONFIG
        if path.is_file() and JobConfig.model_validate_json(path.read_bytes()) != self.config:
            raise InvalidInput(f"out: {self.folder} holds a job with another configuration; choose another folder", param="out")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)
