"""How a wave gets to the device: one upload and one launch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from engine.buckets import EXACT, Buckets
from engine.denoiser import Denoiser
from engine.denoising_task import DenoisingTask
from engine.graphs import Graph, Graphs
from engine.program_step import Need
from engine.slots import SlotMemory, Slots
from engine.staging import Staging
from engine.wave_step import WaveStep
from engine.wave_table import WaveShape, WaveTable
from registry.schedule import Branch


@dataclass(frozen=True)
class Launch:
    """How a wave was asked of the device: with so many rows of padding, and whether as a captured graph."""

    padding: int
    captured: bool


class WaveRunner:
    """Runs waves, padded to a size: as graphs where `prepare` captured fitting ones, else eagerly.

    A `WaveStep` that runs eagerly is the plain twin of its graph. Waves of a network with LoRAs always run so: a graph would be
    of its weights alone.
    """

    def __init__(self, network: Denoiser, slots: SlotMemory, buckets: Buckets = EXACT, graphs: Graphs | None = None) -> None:
        self._network, self._slots = network, slots
        self._buckets, self._graphs = buckets, graphs
        rows = max((*map(slots.most, slots.sizes), *buckets.sizes))
        self._staging = Staging(slots.device, WaveShape(Need("full", 0), rows, tuple(slots.branches)).bytes)
        self._captured: dict[tuple[Need, int], tuple[WaveShape, Graph]] = {}

    @property
    def graph_count(self) -> int:
        """How many graphs are captured."""
        return len(self._captured)

    @property
    def graph_bytes(self) -> int:
        """Memory of the device that graphs hold beside the slots."""
        return self._graphs.bytes if self._graphs else 0

    def run(self, tasks: Sequence[DenoisingTask], eager: bool = False) -> Launch:
        """Advance these tasks by the step that all of them need; `eager`, kernel by kernel in any case.

        Raises what the device raises.
        """
        rows, need = sum(task.unet_rows for task in tasks), tasks[0].need
        kept = tuple(sorted({task.step.branch for task in tasks} - {0})) if need.kind == "full" else ()
        shape = WaveShape(need, self._buckets.padded(rows), kept)
        captured, noisy = None if eager else self._fitting(shape), list(_noisy(tasks))
        table = self._upload(captured[0] if captured else shape, tasks)
        if captured:
            captured[1].replay()
        else:
            WaveStep(tasks[0].network or self._network, self._slots.at(need.size, need.chunks), table)()
        for slot, noise, level in noisy:
            self._slots.at(need.size, need.chunks).add(slot, noise, level)
        return Launch(shape.rows - rows, captured is not None)

    def prepare(self, branches: Collection[Branch], chunks: int = 1) -> Iterator[WaveShape]:
        """Capture what schedules of these branches need and is not there yet, one graph at each step of the iteration.

        That is at every size of the slots, the largest first, and for as many rows as there are slots for; for contexts of one
        chunk, of `chunks`, and of every length that was captured before. Without graphs there is nothing to do. What was
        captured for other branches stays. Raises what the device raises. Out of memory, what was captured before stays; after
        other errors all waves run eagerly, as nobody knows in which state a failed capture leaves the device.
        """
        if self._graphs is None:
            return
        known = {need.branch for need, _ in self._captured} - {0}
        kept = tuple(sorted({*branches, *known}))
        lengths = sorted({1, chunks, *(need.chunks for need, _ in self._captured)}, reverse=True)
        for size, length in product(self._slots.sizes, lengths):
            needs = [*(Need("partial", branch, size, length) for branch in kept), Need("full", 0, size, length)]
            most = self._buckets.padded(self._slots.most(size, length))
            for rows in reversed([rows for rows in self._buckets.sizes if rows <= most]):
                for need in needs:
                    shape = WaveShape(need, rows, kept if need.kind == "full" else ())
                    if not self._fitting(shape):
                        self._captured[need, rows] = shape, self._capture(self._graphs, shape)
                        yield shape

    def _fitting(self, shape: WaveShape) -> tuple[WaveShape, Graph] | None:
        """A graph that does all that this shape does, and maybe keeps more features."""
        captured = self._captured.get((shape.need, shape.rows))
        return captured if captured and {*shape.kept} <= {*captured[0].kept} else None

    def _capture(self, graphs: Graphs, shape: WaveShape) -> Graph:
        """Capture a step of this shape. Its table is nothing but padding: running it changes nobody's slot."""
        try:
            return graphs.capture(
                WaveStep(self._network, self._slots.at(shape.need.size, shape.need.chunks), self._upload(shape, ()))
            )
        except torch.OutOfMemoryError:
            raise
        except Exception:
            self._graphs = None
            self._captured.clear()
            raise

    def _upload(self, shape: WaveShape, tasks: Sequence[DenoisingTask]) -> WaveTable:
        WaveTable.within(self._staging.next(), shape).fill(tasks, Slots.scratch)
        self._staging.upload(shape.bytes)
        return WaveTable.within(self._staging.target, shape)


def _noisy(tasks: Sequence[DenoisingTask]) -> Iterator[tuple[int, Tensor, float]]:
    """The slots that get fresh noise after this step, the noise and its level: none of deterministic solvers.

    It is no part of the captured step: of the other images' waves nothing changes, and adding in place cannot fail by itself.
    """
    for task in tasks:
        if task.step.noise:
            assert task.fresh is not None, "a stochastic solver takes fresh noise"
            noise = task.fresh(task.step.lands)
            if task.source is not None and task.source.kept is not None:
                noise = noise.masked_fill(task.source.kept, 0.0)  # which has its own noise already
            yield from ((slot, noise, task.step.noise) for slot in task.slots)
