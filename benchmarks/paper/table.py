"""Measures a model's table: searches, chooses what is set by hand, makes the images of all, and notes what is known so far."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forecast.forecasts import Recipe
from benchmarks.paper.contenders import (
    CORRECTED,
    FEWER,
    OF_TRANSFORMERS,
    OF_UNETS,
    OPTIMAL,
    OURS,
    PAPER,
    Place,
    at_optimal_timesteps,
    by_hand,
    in_every_setting,
    patterns_of,
    strongest,
    with_corrections,
)
from benchmarks.paper.differences import RFID
from benchmarks.paper.figures import Figures, chances, document, figures
from benchmarks.paper.first_search import FirstSearch
from benchmarks.paper.images import ImageStore, MeasuredImages, write_arrays
from benchmarks.paper.subject import SPEEDUPS, Effort, Subject
from engine.branches import BlockPairs
from engine.loading import load
from evaluation import Gaussian, extractor
from evaluation.real import real_gaussian
from registry.errors import Unsupported
from registry.schedule import Schedule
from search_jobs.baselines import Baseline, Baselines, usual_solvers
from search_jobs.config import JobConfig, digest_of, read_prompts
from search_jobs.evaluator import prompts_of
from search_jobs.job import Job, write_json
from search_jobs.objective import Sample
from search_jobs.progress import Progress
from search_jobs.stages import fresh, halves

SUMMARY, SHOWN = "summary.json", "shown.npz"
SCREEN, CHOOSE, REPORT = 1, 2, 3  # seeds of noise that no search draws
BUDGETS = tuple(1 / speedup for speedup in SPEEDUPS)


@dataclass(frozen=True)
class ModelTable:
    """One model's table, below `folder`: searches, measured images, figures, and `summary.json` with what is known so far.

    Whatever was measured is read; a run that was killed goes on, and ends as one that was not.
    """

    subject: Subject
    effort: Effort
    folder: Path
    progress: Progress
    command: str
    device: str = "cpu"
    dtype: str = "float32"
    budgets: tuple[float, ...] = BUDGETS

    def run(self) -> dict[str, Any]:
        """Measure everything, the dearest cost first; `summary.json` is written anew after each."""
        chosen = self._chosen()
        summary: dict[str, Any] = {}
        for i in range(1, len(self.budgets) + 1):
            summary = self._summary(chosen, self.budgets[:i])
            write_json(self.folder / SUMMARY, summary)
        return summary

    @cached_property
    def store(self) -> ImageStore:
        """Where images are made and measured."""
        model = load(self.subject.model, self.device, self.dtype)
        if model.few_steps:
            raise Unsupported(f"{model.ref.name} is a distilled model: the table is of models of many steps", param="model")
        looks, teacher = extractor(self.subject.features, self.device), model.teacher(self.effort.teacher_steps)
        images = self.folder / "images"
        return ImageStore(model, looks, teacher, self.subject.guidance, images, self.effort.part, made=self.progress.advance)

    @cached_property
    def real(self) -> Gaussian | None:
        """Of the features of real images, where there are any."""
        path = self.subject.real
        return real_gaussian(path, self.store.extractor, self.store.model.image_size) if path else None

    @cached_property
    def prompts(self) -> list[str]:
        """Those that searches split."""
        file = self.subject.prompts
        return read_prompts(file) if file else prompts_of(None, self.store.model.prompts)  # which loads the model

    @cached_property
    def baselines(self) -> Baselines:
        """What can be set by hand."""
        model = self.store.model
        solvers = [name for name in usual_solvers(model.levels) if model.levels.walks[name].refusal is None]
        return Baselines(model.ref, model.levels, model.network.branches, self._cost, solvers)

    def sample(self, seed: int, images: int) -> Sample:
        """Images of noise that nothing else draws, on prompts that no search sees; beside real images on all."""
        return fresh(self.prompts if self.subject.real else halves(self.prompts)[1], images, seed)

    def _cost(self, schedule: Schedule) -> float:
        model = self.store.model
        return model.macs.relative(model.compile(schedule), model.compile(self.store.teacher))

    def _chosen(self) -> dict[Place, Baseline]:
        """The schedule of each place: searches first, then the best of what is set by hand."""
        found = {space: self._searched(space) for space in (OURS, PAPER)}
        chosen = {place: Baseline(OURS, one.digest[:12], one) for place, one in found[OURS].items()}
        places = by_hand(self.baselines, self.budgets, self.effort.teacher_steps, self.effort.every)
        places |= {place: in_every_setting(place, one, self.baselines) for place, one in found[PAPER].items()}
        firsts = [(place, settings[0]) for place, group in places.items() for settings in patterns_of(group).values()]
        patterns = {self.recipe(place, one.schedule).digest for place, one in firsts}
        few, more = self.sample(SCREEN, self.effort.screen), self.sample(CHOOSE, self.effort.choosing(self.subject))
        self.progress.begin(f"{self.subject.name}: by hand", len(patterns) * self.effort.screen)
        looks = [lambda place, one, on=on: self.store.loss(self.recipe(place, one), on) for on in (few, more)]
        rivals = strongest(places, *looks)
        rivals |= strongest(at_optimal_timesteps(rivals, self._first.retimed), *looks)
        return chosen | rivals | strongest(with_corrections(rivals, self._first.corrected), *looks)

    @cached_property
    def _first(self) -> FirstSearch:
        config = self._config(OURS, 0)
        return FirstSearch(config, self.folder / "searches" / "ours-0", self.folder, self.progress)

    def recipe(self, place: Place, schedule: Schedule) -> Recipe:
        """What images of a schedule are made by at a place."""
        return place.recipe(schedule, self.store.model.levels)

    def _searched(self, space: str) -> dict[Place, Schedule]:
        """What each search of a space chose for each budget."""
        chosen = {}
        for seed in range(self.effort.seeds):
            folder = self.folder / "searches" / f"{'ours' if space == OURS else 'paper'}-{seed}"
            report = _report(folder, config := self._config(space, seed)) or Job(config, folder, self.progress).run()
            for budget in self.budgets:
                affordable = [entry for entry in report["budgets"] if entry["finals"]["cost"] <= budget]
                if affordable:
                    best = min(affordable, key=lambda entry: float(entry["finals"]["loss"]))
                    chosen[Place(budget, space, seed)] = Schedule.model_validate(best["schedule"])
        return chosen

    def _config(self, space: str, seed: int) -> JobConfig:
        subject, literal = self.subject, space == PAPER
        return JobConfig.parse(
            {
                "model": str(subject.model), "features": str(subject.features), "features_digest": digest_of(subject.features),
                "prompts": str(subject.prompts or ""), "prompts_digest": digest_of(subject.prompts) if subject.prompts else "",
                "teacher_steps": self.effort.teacher_steps, "guidance": subject.guidance, "scales": (), "seed": seed,
                "device": self.device, "dtype": self.dtype, "heldout": 2, "tiers": {}, "budgets": self.budgets,
                "offsets": "paper" if literal else "free", "retime": not literal, "correct": not literal, **self.effort.search,
            }
        )  # fmt: skip

    def _summary(self, chosen: Mapping[Place, Baseline], budgets: tuple[float, ...]) -> dict[str, Any]:
        """All that is known down to a budget."""
        sample = self.sample(REPORT, self.effort.images_of(self.subject))
        places = {place: self.recipe(place, one.schedule) for place, one in chosen.items() if place.budget in budgets}
        self.progress.begin(f"{self.subject.name}: down to 1/{1 / budgets[-1]:.3g}", len(places) * len(sample.seeds))
        whole = Recipe(self.store.teacher)
        teacher = self.store.measured(whole, sample)
        reference = self._figures(whole, teacher, teacher)
        images = {place: self.store.measured(recipe, sample) for place, recipe in places.items()}
        known = {place: self._figures(recipe, images[place], teacher) for place, recipe in places.items()}
        middle = {(budget, space): _middle(known, budget, space) for budget in budgets for space in (OURS, PAPER)}
        entries = []
        for place, recipe in places.items():
            ours = middle[place.budget, OURS]
            entries.append(
                {
                    "speedup": 1 / place.budget,
                    "kind": place.kind,
                    "seed": place.seed,
                    "name": chosen[place].name,
                    "digest": recipe.digest,
                    "steps": recipe.schedule.counts(),
                    "cost": self._cost(recipe.schedule),
                    "middle": place.seed is None or place == middle[place.budget, place.kind],
                    **document(
                        known[place], reference, known[ours] if ours else {}, self._chances(recipe, images[place], teacher)
                    ),
                }
            )
        shown = {self.store.teacher.digest: teacher.shown}
        shown |= {recipe.digest: images[place].shown for place, recipe in places.items()}
        write_arrays(self.folder / SHOWN, shown)
        return {
            "about": self._about(sample, teacher),
            "speedups": [1 / budget for budget in self.budgets],
            "teacher": {"digest": self.store.teacher.digest, **document(reference, reference, {}, {})},
            "entries": entries,
        }

    def _figures(self, recipe: Recipe, images: MeasuredImages, teacher: MeasuredImages) -> Figures:
        return figures(images, teacher, self.real, self._file(recipe, images, "balanced"))

    def _chances(self, recipe: Recipe, images: MeasuredImages, teacher: MeasuredImages) -> dict[str, float]:
        return chances(images, teacher, self.real, self._file(recipe, images, "swapped"))

    def _file(self, recipe: Recipe, images: MeasuredImages, kind: str) -> Path:
        """Where what follows from a recipe's images is kept."""
        real = hashlib.sha256(b"".join(part.tobytes() for part in self.real)).hexdigest()[:12] if self.real else "alone"
        names = (recipe.digest[:24], len(images.errors), self.effort.part, real, kind)
        return self.folder / "figures" / ("-".join(map(str, names)) + ".npz")

    def _about(self, sample: Sample, teacher: MeasuredImages) -> dict[str, Any]:
        """What was measured, with what, where and when."""
        store, kind = (
            self.store,
            self.store.extractor.recognised(torch.zeros(1, 3, *self.store.model.image_size), sample.prompts[:1]),
        )
        rows = store.model.rows(self.subject.guidance)
        card = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else None
        return {
            "model": self.subject.name,
            "effort": self.effort.name,
            "images": len(sample.seeds),
            "seeds": self.effort.seeds,
            "search": self.effort.search,
            "teacher": f"{(solver := store.teacher.solver).name.upper()}, {solver.teacher_steps} steps, {solver.spacing}",
            "macs": store.model.macs.of_program(store.model.compile(store.teacher), rows),
            "guidance": self.subject.guidance,
            "by_hand": self._kinds(),
            "features": store.extractor.name,
            "score": None if np.isnan(teacher.scores).any() else "CLIP score" if kind is None else "accuracy, %",
            "real": self.subject.real is not None,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": card or f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "command": self.command,
        }

    def _kinds(self) -> list[str]:
        """What is neither searched nor the paper's space for this model, whether there is something as cheap or not."""
        baselines = self.baselines
        possible = OF_TRANSFORMERS if isinstance(baselines.branches, BlockPairs) else OF_UNETS
        missing = {label for family, label in FEWER.items() if family.removeprefix("fewer-step ") not in baselines.solvers}
        return [kind for kind in (*possible, OPTIMAL, CORRECTED) if kind not in missing]


def _middle(known: Mapping[Place, Figures], budget: float, space: str) -> Place | None:
    """Of a space's searches the one in the middle at a budget, by rFID; None where none found anything."""
    places = [place for place in known if (place.budget, place.kind) == (budget, space)]
    ranked = sorted(places, key=lambda place: known[place][RFID].value if known[place] else np.inf)
    return ranked[len(ranked) // 2] if ranked else None


def _report(folder: Path, config: JobConfig) -> dict[str, Any] | None:
    """The report of a search that has finished; None where it has not, or was another one."""
    path = folder / "report.json"
    report: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"config": None}
    return report if report["config"] == config.model_dump(mode="json") else None
