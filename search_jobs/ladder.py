"""The rungs that children climb: each has more images than the one below, and most children fall before the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from registry.schedule import Schedule
from search_jobs.config import JobConfig
from search_jobs.evaluations import Evaluations
from search_jobs.measurement import pooled
from search_jobs.optimiser import Child, Point, survivors
from search_jobs.space import Genome, Space
from search_jobs.stages import RUNGS


@dataclass
class Ladder:
    """Evaluates children rung by rung. fitted: each with the corrections of the highest rung that fits them."""

    config: JobConfig
    space: Space
    evaluations: Evaluations
    fitted: dict[Genome, Schedule] = field(default_factory=dict)

    def climb(self, part: str, children: Sequence[Child], least: int = 1) -> list[Point]:
        """Each child with its loss on the highest rung that it reached: a part of the job.

        least: so many of a budget's children climb on at least. On the last rung the loss is that on its images and those of
        the rung before.
        """
        self.evaluations.progress.begin(part, self.images(len(children), least))
        points: dict[Genome, Point] = {}
        climbing, fitted = list(children), dict[Genome, Schedule]()
        for rung, stage in enumerate(RUNGS):
            fitting = self.config.correct and stage != "select"
            entered = {c.genome: fitted[c.genome] if stage == "select" else self.space.schedule(c.genome) for c in climbing}
            evaluations = self.evaluations.of(stage, entered.values(), fitting)
            for genome, evaluation in zip(entered, evaluations, strict=True):
                fitted[genome], measurement = evaluation.schedule, evaluation.measurement
                loss = measurement.loss
                if stage == "select":
                    images = self.config.images, self.config.select
                    loss = pooled((points[genome].loss, loss), images, self.config.mean)
                points[genome] = Point(genome, measurement.cost, loss, rung)
            climbing = survivors(climbing, lambda genome: points[genome].loss, self.config.share, least)
        self.fitted |= fitted  # of a whole generation, or of none of it
        return list(points.values())

    def images(self, children: int, least: int = 1) -> int:
        """About how many images so many children take: how many climb on depends on the budgets that they share."""
        climbing, total = children, 0
        for stage in RUNGS:
            total += climbing * self.evaluations.images_of(stage)
            climbing = min(climbing, max(least * len(self.config.ceilings), round(self.config.share * climbing)))
        return total
