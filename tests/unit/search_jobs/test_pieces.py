"""Whatever the memory holds, the results are the same; only what holds nothing at all is refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import model_folders
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from typing_extensions import override

from engine.condition import Condition
from engine.loading import load
from engine.model import Model
from engine.unrolled import UnrolledUNet
from evaluation import Extractor, Features
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from search_jobs.dask_executor import GROUP, group_size
from search_jobs.memory import CudaMemory, HostMemory, Memory, out_of_memory
from search_jobs.objective import Evaluation, Objective, Sample
from search_jobs.pieces import FIRST, HELD, SHARE, Pieces

PROMPTS = ["red heart", "cat face", "tomato"]
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


class Card(Memory):
    """A device on which one thing takes `each` bytes; it fails where that is more than is there."""

    name = "card"

    def __init__(self, there: int, each: int) -> None:
        self.there, self.each, self.sizes, self.released = there, each, list[int](), 0

    def work(self, part: slice) -> list[int]:
        self.sizes.append(part.stop - part.start)
        if self.sizes[-1] * self.each > self.there:
            raise OUT
        return list(range(part.start, part.stop))

    @override
    def free(self) -> float:
        return self.there

    @override
    def watch(self) -> None:
        pass

    @override
    def taken(self) -> int:
        return self.sizes[-1] * self.each

    @override
    def release(self) -> None:
        self.released += 1


class Blind(Card):
    """One that tells nothing of its memory."""

    @override
    def free(self) -> float:
        return float("inf")


def flat(parts: Iterator[list[int]]) -> list[int]:
    return [one for part in parts for one in part]


@given(count=st.integers(0, 300), most=st.integers(1, 300), holds=st.integers(1, 300))
def test_a_size_that_fits_is_found_by_halving_and_remembered(count: int, most: int, holds: int) -> None:
    card = Blind(holds, each=1)
    pieces = Pieces(card)
    assert flat(pieces.run("things", count, most, card.work)) == list(range(count))
    assert max(card.sizes, default=0) <= most
    failed, card.sizes = sum(size > holds for size in card.sizes), []
    assert (failed > 0) == (min(count, most) > holds)
    assert card.released == failed
    assert flat(pieces.run("things", count, most, card.work)) == list(range(count))
    assert all(size <= holds for size in card.sizes), "what failed once is not tried again"


@given(count=st.integers(1, 300), most=st.integers(1, 300), holds=st.integers(FIRST, 300), each=st.integers(1, 1000))
def test_a_device_that_tells_its_memory_is_filled_and_never_overfilled(count: int, most: int, holds: int, each: int) -> None:
    card = Card(holds * each, each)
    assert flat(Pieces(card).run("things", count, most, card.work)) == list(range(count))
    assert card.released == 0, "nothing failed"
    first, *others = card.sizes
    assert first == min(count, most, FIRST)
    left = count - first
    for size in others:
        assert size == min(left, most, max(1, int(SHARE * holds)))
        left -= size


def test_what_is_held_meanwhile_takes_a_part_of_the_memory() -> None:
    card = Card(1000, each=1)
    for _ in Pieces(card).run("things", 100, 100, card.work, each=50):
        pass
    assert card.sizes[0] == HELD * 1000 / 50


@given(outer=st.integers(1, 40), inner=st.integers(1, 40))
def test_where_too_much_is_held_the_calls_inside_are_not_to_blame(outer: int, inner: int) -> None:
    """Calls fail while more than `outer` things are held, however small they are; then only their own size counts."""
    pieces, calls = Pieces(HostMemory()), list[int]()

    def work(part: slice) -> list[int]:
        def call(rows: slice) -> int:
            calls.append(rows.stop - rows.start)
            if part.stop - part.start > outer or calls[-1] > inner:
                raise OUT
            return calls[-1]

        assert sum(pieces.run("rows", 64, 64, call)) == 64
        return list(range(part.start, part.stop))

    assert flat(pieces.run("things", 40, 40, work)) == list(range(40))
    calls.clear()
    assert flat(pieces.run("things", 40, 40, work)) == list(range(40))
    assert min(calls[:1]) > inner / 2, "as large as before too much was held"


def test_what_does_not_fit_even_alone_is_refused_in_one_line() -> None:
    card = Blind(0, each=1)
    with pytest.raises(InvalidInput, match="device: the memory of card does not hold one of the UNet rows; ask for") as caught:
        list(Pieces(card).run("UNet rows", 24, 24, card.work))
    assert caught.value.param == "device"
    assert card.sizes == [24, 12, 6, 3, 1]


def test_a_failure_of_another_kind_is_not_tried_again() -> None:
    def fails(part: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(Pieces(HostMemory()).run("things", 4, 4, fails))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))


def test_a_gpu_counts_what_torch_keeps_as_free_and_what_a_call_took_beyond_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = {"memory_reserved": 50, "memory_allocated": 30, "max_memory_allocated": 70, "mem_get_info": (100, 200)}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    memory = CudaMemory(torch.device("cuda:0"))
    memory.watch()
    assert (memory.name, memory.free(), memory.taken()) == ("cuda:0", 120, 40)


class Narrow(UnrolledUNet):
    """A UNet whose device holds so many rows of each kind of call."""

    def __init__(self, whole: UnrolledUNet, holds: Mapping[str, int]) -> None:
        super().__init__(whole.unet)
        self.holds, self.rows = holds, list[int]()

    def check(self, kind: str, rows: int) -> None:
        if rows > self.holds[kind]:
            raise OUT
        self.rows.append(rows)

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self.check("full", len(sample))
        return super().full(sample, timesteps, condition, keep)

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: int, feature: Tensor) -> Tensor:
        self.check("partial", len(sample))
        return super().partial(sample, timesteps, condition, branch, feature)


def narrowed(model: Model, holds: Mapping[str, int]) -> Model:
    """The model on such a device. Its MACs are as before, and take longer to count than a search of this size."""
    narrow = replace(model, network=Narrow(model.network, holds))
    vars(narrow)["macs"] = model.macs
    return narrow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Model:
    torch.set_num_threads(1)
    return load(model_folders.sd(tmp_path_factory.mktemp("small"), tiny_config))


class Coarse(Extractor):
    """Means of patches: quick, and as good as any where only equality counts."""

    name = "coarse"

    @override
    def images(self, images: Tensor) -> Features:
        return adaptive_avg_pool2d(images, 4).flatten(1).numpy().astype(np.float64)

    @override
    def texts(self, prompts: Sequence[str]) -> None:
        return None


def children(model: Model) -> list[Schedule]:
    """Relatives of one generation: some begin alike, one is there twice."""
    segments = [
        (Segment(partial=(1,), branch=1), Segment(partial=(1,), branch=branch), Segment(partial=last, branch=1 + len(last)))
        for branch, last in ((1, ()), (2, (1,)), (1, ()))
    ]
    solvers = [model.solver(name, 6) for name in ("ddim", "dpmsolver++")]
    return [Schedule(model=model.ref, solver=solver, segments=each) for solver in solvers for each in segments]


def measured(model: Model, fitting: bool, **options: Any) -> list[Evaluation]:
    sample = Sample.draw(PROMPTS, 2, 1)
    judge = Objective(model, Coarse(), sample, teacher_steps=6, fitting=fitting, **options)
    return list(judge.evaluate_all(children(model), fitting))


def same(some: list[Evaluation], others: list[Evaluation]) -> None:
    """The same figures, to what the order of sums changes."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name in ("loss", "rfid", "psnr"):
            assert getattr(one.measurement, name) == pytest.approx(getattr(other.measurement, name), rel=1e-3, abs=1e-4)
        assert one.measurement.cost == other.measurement.cost


@pytest.fixture(scope="module", params=[False, True], ids=["as it is", "fitted"])
def alone(request: pytest.FixtureRequest, small: Model) -> tuple[bool, list[Evaluation]]:
    """Each child measured by itself, nothing shared."""
    return request.param, measured(small, request.param)


def test_children_measured_together_are_what_they_are_alone_for_fewer_calls(
    small: Model, alone: tuple[bool, list[Evaluation]]
) -> None:
    fitting, expected = alone
    narrow = narrowed(small, {"full": 1000, "partial": 1000})
    together = measured(narrow, fitting, together=8, batch=64)
    same(together, expected)
    assert isinstance(narrow.network, Narrow)
    rows = narrow.network.rows
    for one, other in zip(together, expected, strict=True):
        assert one.spent.run + one.spent.shared == other.spent.run
    assert sum(one.spent.shared for one in together) > 0, "without any memory for what is shared"
    assert together[2].spent.run == 0, "it is the first one again"
    assert max(rows) >= 3 * 4, "several children in one call, 2 images with guidance each"
    assert len(rows) < len(children(small)) * 6


@settings(max_examples=5)
@given(full=st.integers(1, 24), partial=st.integers(1, 24), together=st.integers(1, 6), batch=st.integers(1, 12))
def test_wherever_memory_runs_out_the_measures_are_the_same(
    small: Model, alone: tuple[bool, list[Evaluation]], full: int, partial: int, together: int, batch: int
) -> None:
    fitting, expected = alone
    narrow = narrowed(small, {"full": full, "partial": partial})
    same(measured(narrow, fitting, together=together, batch=batch), expected)


def test_it_is_said_once_what_the_memory_holds(small: Model, caplog: pytest.LogCaptureFixture) -> None:
    narrow = narrowed(small, {"full": 5, "partial": 1000})
    with caplog.at_level(logging.WARNING):
        measured(narrow, fitting=False, together=8, batch=64)
    assert caplog.messages == [
        "the memory of the computer is too small for more rows of a full step at once: from now on at most 4"
    ]


@given(tasks=st.integers(1, 500), workers=st.integers(1, 20))
def test_groups_for_workers_are_a_few_for_cpus_and_a_whole_share_for_gpus(tasks: int, workers: int) -> None:
    few, share = group_size(tasks, workers, together=1), group_size(tasks, workers, together=1 << 20)
    assert few == 1 or (few <= GROUP and few * 2 * workers <= tasks)
    assert share * workers >= tasks
    assert (share - 1) * workers < tasks or share == few
