"""Whose wave is next, where a server has several models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

from engine.denoising_task import first_in_line
from server.batching.image_task import ImageTask
from server.batching.inflight_wave import InflightWave


class Sharer(Protocol):
    """A model that wants waves."""

    def hurries(self, task: ImageTask, now: float) -> bool:
        """Whether a task's deadline can be met, but only just."""


S = TypeVar("S", bound=Sharer)


class ModelTurns:
    """Shares the MACs of waves between the tiers of all models: each (model, tier) with images in flight gets the same.

    Start-time fair queuing, as in `TierShares`, which says who of one model comes in: an account for each (model, tier) is
    charged what its images take in a wave, and one that was away starts again at the smallest account of those present. The
    next wave is of the model that has the smallest account; a deadline that can still be met goes first on credit, while its
    account is no more than a wave above the smallest. Images that run while no client waits wait for all models' clients, and
    idle ones for all models' background work.
    """

    def __init__(self) -> None:
        self._accounts: dict[tuple[Sharer, str], float] = {}
        self._present: set[tuple[Sharer, str]] = set()
        self._largest = 0  # MACs of a wave

    def next(self, inflight: Mapping[S, Collection[ImageTask]], now: float) -> S:
        """The model whose wave is next. inflight: the images in the waves of each, at least one."""
        first = {id(task) for task in first_in_line([task for tasks in inflight.values() for task in tasks])}
        kept = {model: [task for task in tasks if id(task) in first] for model, tasks in inflight.items()}
        wanting = {model: tasks for model, tasks in kept.items() if tasks}
        classes = {(model, task.tier): model for model, tasks in wanting.items() for task in tasks}
        self._greet(classes.keys())
        least = min(classes, key=lambda one: self._accounts[one])
        credit = self._accounts[least] + self._largest
        hurried = {
            model: min((task.deadline for task in tasks if self._may_hurry(model, task, credit, now)), default=None)
            for model, tasks in wanting.items()
        }
        urgent = {model: deadline for model, deadline in hurried.items() if deadline is not None}
        return min(urgent, key=lambda model: urgent[model]) if urgent else classes[least]

    def charge(self, model: Sharer, inflight: InflightWave) -> None:
        """This wave was launched: each tier's images pay for their rows, which all took the same."""
        rows = Counter[str]()
        for task in inflight.wave.tasks:
            rows[task.tier] += task.unet_rows
        for tier, count in rows.items():
            one = model, tier
            self._accounts[one] = self._accounts.get(one, 0.0) + inflight.macs * count / rows.total()
        self._largest = max(self._largest, inflight.macs)

    def forget(self, model: Sharer) -> None:
        """It has left the device."""
        self._accounts = {one: account for one, account in self._accounts.items() if one[0] is not model}
        self._present = {one for one in self._present if one[0] is not model}

    def _may_hurry(self, model: Sharer, task: ImageTask, credit: float, now: float) -> bool:
        return self._accounts[model, task.tier] <= credit and model.hurries(task, now)

    def _greet(self, classes: Collection[tuple[Sharer, str]]) -> None:
        """Those that were away start at the smallest account of those that were not."""
        floor = min((self._accounts[one] for one in classes if one in self._present), default=0.0)
        for one in classes:
            if one not in self._present:
                self._accounts[one] = max(self._accounts.get(one, 0.0), floor)
        self._present = set(classes)
