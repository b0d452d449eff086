"""The work of waves, and a finished image's beside what its schedule prescribes: Prometheus can hold one to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from engine.macs import StepMacs
from engine.program_step import Need
from engine.waves import Wave
from server.batching.image_task import ImageTask
from server.telemetry import metrics


def count_wave(need: Need, tasks: Collection[ImageTask]) -> list[int]:
    """Count the steps and MACs of a launched wave, and note them in its tasks: they are spent whatever becomes of it.

    Returns each task's MACs, in the order of the tasks.
    """
    macs_by_label, steps_by_label, task_macs = Counter[tuple[str, str]](), Counter[tuple[str, str]](), list[int]()
    for task in tasks:
        macs, null = task.ran(need)
        task_macs.append(macs)
        macs_by_label[task.spec.tier, task.spec.arm] += macs
        steps_by_label[need.kind, task.spec.tier] += 1
        steps_by_label["null", task.spec.tier] += null
    for (tier, arm), macs in macs_by_label.items():
        metrics.macs_total.labels(tier, arm, need.kind).inc(macs)
    for labels, steps in steps_by_label.items():
        metrics.steps_total.labels(*labels).inc(steps)
    return task_macs


def count_launch(wave: Wave[ImageTask], step_macs: StepMacs) -> None:
    """Count how a wave was launched, and the MACs of its padding, which nobody is billed for."""
    metrics.waves_total.labels("graph" if wave.captured else "eager").inc()
    metrics.padding_macs_total.labels(wave.need.kind).inc(wave.padding * step_macs.of(wave.need.kind, wave.need.branch))


def count_image(task: ImageTask) -> None:
    """Count steps and MACs twice: as the waves ran them, and as the schedule's document says.

    A document without a cost (the teacher made up at start, say) is held to nothing: its MACs count as they ran; and so do
    those of other sizes than the model's own and of longer contexts than one chunk, which documents tell no cost of, and of
    images that start from another one.
    """
    spec, schedule = task.spec, task.spec.program.schedule
    for kind, steps in spec.program.counts.items():
        metrics.planned_steps_total.labels(kind, spec.tier).inc(steps)
        metrics.finished_steps_total.labels(kind, spec.tier).inc(task.steps[kind])
    cost = schedule.cost if spec.size is None and spec.chunks == 1 and spec.edit is None else None
    metrics.teacher_macs_total.labels(spec.tier, spec.arm).inc(spec.teacher_macs)
    metrics.planned_macs_total.labels(spec.tier).inc(spec.unet_rows * cost.macs / cost.rows if cost else task.macs)
    metrics.image_macs.labels(spec.tier).observe(task.macs)
