"""Another model in the comparison: a distilled student of one's own, drawn in its own steps from the same prompts and noise.

It is held against the run's teacher as schedules are, by its images alone. Its cost is its own MACs over those of the teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from engine.folder import Folder
from engine.guidance import MAX_SCALE, meant
from engine.loading import usual
from engine.model import Model
from registry.errors import FlexiError, InvalidInput
from registry.schedule import MAX_TEACHER_STEPS
from search_jobs.config import JobConfig
from search_jobs.evaluator import opened
from search_jobs.job import Job, write_json
from search_jobs.measurement import Measurement
from search_jobs.objective import Objective

N = TypeVar("N", int, float)
FOLDER = "rivals"  # of a run folder: what was measured of each


@dataclass(frozen=True)
class Rival:
    """A model in a folder, and what its images are drawn with: all steps full, with its own solver, at this guidance scale."""

    folder: Path
    steps: int
    guidance: float

    def measured(self, job: Job) -> tuple[dict[str, Any], Measurement]:
        """What it was drawn with, and its figures on the run's held-out images: from the run folder, else measured and kept.

        Raises `InvalidInput` with the param `rival` for a model whose images cannot be held against the teacher's.
        """
        held_out = job.evaluator.objective("held-out")
        known = (self.fingerprint, self.steps, self.guidance, job.config.dtype, held_out.teacher.schedule.digest)
        sample = (held_out.guidance, list(held_out.sample.prompts), list(held_out.sample.seeds))
        key = hashlib.sha256(
            repr((known, sample, job.evaluator.extractor.name, job.config.features_digest)).encode()
        ).hexdigest()
        file = job.folder / FOLDER / f"{key}.json"
        if not file.is_file():
            about, measurement = self._measure(job, held_out)
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"about": about, "measure": asdict(measurement)})
        try:
            kept = json.loads(file.read_bytes())
            return dict(kept["about"]), TypeAdapter(Measurement).validate_python(kept["measure"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{file} is no measurement of this version: remove it, and compare again", param="run"
            ) from error

    @property
    def fingerprint(self) -> str:
        """Of its files."""
        return Folder(self.folder).fingerprint()

    def _measure(self, job: Job, held_out: Objective) -> tuple[dict[str, Any], Measurement]:
        config, sample = job.config, held_out.sample
        job.progress.begin(f"rival {self.folder.name}", len(sample.seeds))
        try:
            model = opened(str(self.folder), config.device, config.dtype, None, config.compiled)
            _refuse_other_images(model, held_out.model)
            size = None if config.size is None else model.other_size(config.size)
            drawn = Objective(
                model,
                job.evaluator.extractor,
                sample,
                self.steps,
                self.guidance,
                config.batch,
                progress=job.progress.advance,
                pieces=job.evaluator.pieces,
                size=size,
            )  # whose teacher it is itself
        except FlexiError as error:
            raise InvalidInput(f"{self.folder}: {error}", param="rival") from error
        macs = model.macs_at(size).of_program(drawn.teacher, drawn.rows)
        whole = held_out.teacher_macs // len(sample.seeds)
        measurement = held_out.measure_images(drawn.teacher_outputs.images, macs / whole, macs)
        about = {
            "name": model.ref.name,
            "fingerprint": model.ref.fingerprint,
            "solver": drawn.teacher.schedule.solver.name,
            "steps": self.steps,
            "guidance": self.guidance,
        }
        return about, measurement


def rivals(config: JobConfig, folders: Sequence[Path], steps: Sequence[int], scales: Sequence[float]) -> list[Rival]:
    """The rivals in these folders. steps, scales: of each, one for all, or none.

    What is not said is what a distilled model was taught, else what the run's teacher has. No weights are read.
    Raises `InvalidInput` naming the option.
    """
    taken = []
    for folder, count, scale in zip(folders, _each("steps", steps, folders), _each("guidance", scales, folders), strict=True):
        try:
            taught = usual(folder)
        except FlexiError as error:
            raise InvalidInput(f"{folder}: {error}", param="rival") from error
        count = count if count is not None else taught.few_steps or config.teacher_steps
        scale = scale if scale is not None else taught.guidance if taught.few_steps else config.guidance
        if not 1 <= count <= MAX_TEACHER_STEPS:
            raise InvalidInput(f"must be from 1 to {MAX_TEACHER_STEPS}, got {count}", param="rival_steps")
        if not 0 <= scale <= MAX_SCALE:
            raise InvalidInput(f"must be from 0 to {MAX_SCALE:g}, got {scale:g}", param="rival_guidance")
        taken.append(Rival(folder, count, meant(scale)))
    return taken


def at_its_cost(document: Mapping[str, Any], entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The dearest searched schedule of a comparison that costs no more than this rival; None where there is none."""
    searched = [budget["searched"] for budget in document["budgets"] if budget["searched"]]
    affordable = [schedule for schedule in searched if schedule["cost"] <= entry["cost"]]
    return max(affordable, key=lambda schedule: float(schedule["cost"]), default=None)


def _each(of: str, said: Sequence[N], folders: Sequence[Path]) -> Sequence[N | None]:
    """One value for each folder."""
    if len(said) not in (0, 1, len(folders)):
        raise InvalidInput(f"say one, or one for each of the {len(folders)} rivals; got {len(said)}", param=f"rival_{of}")
    if said and not folders:
        raise InvalidInput("is of a rival, and there is none", param=f"rival_{of}")
    return list(said) * len(folders) if len(said) == 1 else list(said) or [None] * len(folders)


def _refuse_other_images(rival: Model, own: Model) -> None:
    """Raises `InvalidInput` for images of another size, or that begin with other noise."""
    for what, theirs, ours in (
        ("makes images of {}×{} pixels", rival.image_size, own.image_size),
        ("begins with noise of {}×{}×{}", rival.latent_shape, own.latent_shape),
    ):
        if theirs != ours:
            raise InvalidInput(f"it {what.format(*theirs)}, and the run's model {what.format(*ours)}", param="rival")
    texts = [model.prompts.reads_texts for model in (rival, own)]
    if type(rival.prompts) is not type(own.prompts) and not all(texts):
        raise InvalidInput("it does not read such prompts as the run's model does", param="rival")
