"""Continuous batching of denoising steps: images of many requests and schedules in flight, one batched UNet call per wave.

This is iteration-level scheduling, as Orca (OSDI 2022) and vLLM do it for tokens. An image's next step is known beforehand
(its program says so), so images can be grouped by what they need: a wave is one UNet call for images that all need a full
step, or all need a partial step of the same branch, at one size and with contexts of one length, wherever each of them is on
its own trajectory. Which images, is the policy's choice; how, is here. `sampler.generate` is the plain twin: every image ends
as it would end there, whatever its companions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from traceback import clear_frames
from typing import Generic, TypeVar

import torch
from torch import Tensor

from engine.buckets import EXACT, Buckets
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.denoising_task import DenoisingTask, first_in_line
from engine.device import DeviceLost, Fence, lost, to_host
from engine.graphs import Graphs
from engine.policy import FCFS, Policy
from engine.program_step import Need
from engine.slots import SlotMemory
from engine.wave_runner import Launch, WaveRunner

T = TypeVar("T", bound=DenoisingTask)


@dataclass(frozen=True)
class Wave(Generic[T]):
    """A launched wave.

    need: the kind of its step. unet_rows: how many its tasks took, and padding how many more the call had. captured: whether it
    was launched as a captured graph. tasks: those that advanced. failed: those that did not, each with its error. Tasks that
    are done or failed have left. The device is at work on the wave from the fence `begin` to the fence `end`. finished: the
    tasks that are done. finite (finished,), bool: whether the latent of each is, once `end` is passed.
    """

    need: Need
    unet_rows: int
    padding: int
    captured: bool
    tasks: Sequence[T]
    failed: Sequence[T]
    begin: Fence
    end: Fence
    finished: Sequence[T] = ()
    finite: Tensor | None = None

    @property
    def seconds(self) -> float:
        """What it took the device, after the wave has landed."""
        return self.end.since(self.begin)


class Waves(Generic[T]):
    """The tasks in flight, least recently advanced first. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        network: Denoiser,
        slots: SlotMemory,
        policy: Policy | None = None,
        buckets: Buckets = EXACT,
        graphs: Graphs | None = None,
    ) -> None:
        """At most as many UNet rows as there are slots for are in flight. The default policy is `FCFS`.

        Waves are padded to a size of `buckets`, and are one launch each where `prepare` captured `graphs`.
        """
        self.network, self.slots = network, slots
        self.policy = policy or FCFS()
        self._runner = WaveRunner(network, slots, buckets, graphs)
        self.prepare = self._runner.prepare
        self.tasks: list[T] = []

    def add(self, task: T, noise: Tensor, condition: Condition, negative: Condition | None = None) -> None:
        """Take in a task for which slots are free; it may join the next wave.

        noise (c, h, w): unit starting noise; a task with a source begins at that, noised as its program says. condition
        and, for a guided task, negative: one row each.
        """
        conditions = [condition] if negative is None else [condition, negative]
        assert len(conditions) == task.unet_rows, "guidance takes a negative condition, and nothing else does"
        slots, source = self.slots.take(task.slot_count, task.size, task.chunks), task.source
        task.slots, task.kept_slot = slots[: task.unet_rows], slots[-1] if task.masked else None
        self.tasks.append(task)  # before the device is asked for anything: if that fails, `cancel` gives the memory back
        latent = task.program.begin(noise, source)
        if task.kept_slot is not None:
            assert source is not None, "a masked task has a source"
            assert source.kept is not None, "and keeps something of it"
            self.slots.at(task.size, task.chunks).keep_source(task.kept_slot, source.latent, noise, source.kept)
        for slot, row in zip(task.slots, conditions, strict=True):
            self.slots.at(task.size, task.chunks).put(slot, latent, row)

    @property
    def graph_count(self) -> int:
        """How many graphs are captured."""
        return self._runner.graph_count

    @property
    def graph_bytes(self) -> int:
        """Memory of the device that graphs hold beside the slots."""
        return self._runner.graph_bytes

    def cancel(self, task: T) -> None:
        """Drop a task between two launches; the others go on unchanged. One that has left already is no error."""
        if task in self.tasks:
            self.tasks.remove(task)
            self._leave(task)

    def tick(self, now: float = 0.0) -> Wave[T] | None:
        """One wave from its forming to its end. None when nothing is in flight."""
        wave = self.launch(now)
        return wave and self.land(wave)

    def launch(self, now: float = 0.0) -> Wave[T] | None:
        """Let the policy form one wave, ask the device for it, advance its tasks and let the done ones go.

        A GPU is still at work when this returns, and the next wave may be launched behind it: which steps follow is known
        beforehand, and whatever reads a task's state is asked of the device after what writes it.
        """
        if not self.tasks:
            return None
        chosen = self.policy.choose(first_in_line(self.tasks), now)
        need, unet_rows, begin = chosen[0].need, sum(task.unet_rows for task in chosen), self.network.fence()
        launches = self._attempt(chosen)
        finished = [task for task in chosen if task.done and not task.error]
        for task in finished:
            task.latent = self.slots.at(task.size, task.chunks).latent(task.slots[0])
        finite = to_host(_finite([task.latent for task in finished if task.latent is not None])) if finished else None
        self._advance(chosen)
        return Wave(
            need=need,
            unet_rows=unet_rows,
            padding=sum(launch.padding for launch in launches),
            captured=all(launch.captured for launch in launches),
            tasks=[task for task in chosen if not task.error],
            failed=[task for task in chosen if task.error],
            begin=begin,
            end=self.network.fence(),
            finished=finished,
            finite=finite,
        )

    def land(self, wave: Wave[T]) -> Wave[T]:
        """Wait for a wave's end; finished tasks whose latent is not finite are then among the failed ones.

        Raises what the device raises, which may be the fault of any wave launched so far. Waves land in the order of launching.
        """
        wave.end.wait()
        if wave.finite is None or wave.finite.all():
            return wave
        bad = [task for task, finite in zip(wave.finished, wave.finite.tolist(), strict=True) if not finite]
        for task in bad:
            task.error = FloatingPointError("the latent is not finite")
        return replace(wave, tasks=[task for task in wave.tasks if task not in bad], failed=[*wave.failed, *bad])

    def _advance(self, chosen: Sequence[T]) -> None:
        """Those that ran go to the back or leave; the others have waited one wave more."""
        waiting = [task for task in self.tasks if task not in chosen]
        for task in waiting:
            task.waits += 1
        for task in chosen:
            task.waits = 0
            if task.done or task.error:
                self._leave(task)
        self.tasks = waiting + [task for task in chosen if task.slots]

    def _attempt(self, tasks: Sequence[T], eager: bool = False) -> list[Launch]:
        """Run one wave; if that fails, its halves, so that only the culprits fail, and a wave too large for memory still runs.

        A task that fails alone gets its error, and stays as it was before; the others advance. Halves run `eager`.
        Raises `DeviceLost`.
        """
        try:
            launch = self._runner.run(tasks, eager)
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold the memory of the attempt
            if lost(error):
                raise DeviceLost(str(error)) from error
            if len(tasks) == 1:
                tasks[0].error = error
                return []
        else:
            for task in tasks:
                task.position += 1
            return [launch]
        half = len(tasks) // 2
        return [*self._attempt(tasks[:half], eager=True), *self._attempt(tasks[half:], eager=True)]

    def _leave(self, task: T) -> None:
        self.slots.give_back(task.held, task.size, task.chunks)
        task.slots, task.kept_slot = (), None


def _finite(latents: Sequence[Tensor]) -> Tensor:
    """Whether each latent (c, h, w) is finite throughout: (n,), bool."""
    return torch.isfinite(torch.stack(list(latents))).flatten(1).all(dim=1)
