"""Every task ends as the plain loop would end it, whatever joins, leaves or is cancelled beside it; no task starves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from fake_graphs import FakeGraphs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from schedule_strategies import some_corrections
from torch import Tensor

from engine.buckets import EXACT, Buckets, dense
from engine.condition import Condition
from engine.curve import CostCurve
from engine.denoising_task import DenoisingTask
from engine.device import DeviceLost
from engine.graphs import Graphs
from engine.image_size import ImageSize
from engine.macs import count_steps
from engine.policy import FCFS, Balanced, Policy
from engine.program import Program, compile_program
from engine.program_step import Need
from engine.room import Room
from engine.sampler import generate
from engine.schedulers import noise_levels
from engine.slots import Shape, SlotLayout, SlotMemory, slot_bytes
from engine.source import EncodedSource
from engine.unrolled import UnrolledUNet
from engine.waves import Waves
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName

# Not bitwise: at another batch size, convolutions and matrix products sum in another order. Seen up to 4e-6, with latents
# up to 4.5; a row that got its neighbour's feature, prompt or coefficient is off by 1e-2 and more.
ATOL = 3e-5
REF = ModelRef(name="tiny", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
LEVELS = noise_levels({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"})
CHUNKS = 2  # of contexts, at most
CONTEXTS = torch.randn(2, 1, CHUNKS * 5, 6, generator=torch.Generator().manual_seed(1))
WANTED, UNWANTED = (Condition(context[:, :5]) for context in CONTEXTS)
LONG, UNLONG = map(Condition, CONTEXTS)
Job = tuple[Schedule, int, float | None]  # schedule, seed, guidance
Edit = tuple[float, bool]  # the strength, and whether half of the source is kept
OTHERS = (ImageSize(4, 8), ImageSize(12, 8), ImageSize(8, 16))  # beside 8×8, of latents


def schedule_of(*segments: Segment, length: int = 2, solver: SolverName = "ddim") -> Schedule:
    return Schedule(
        model=REF,
        solver=Solver(name=solver, teacher_steps=length * len(segments), spacing="trailing"),
        segments=segments,
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Up to nine teacher steps of any kind; branches 1 to 4."""
    count, length = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    segments = []
    for _ in range(count):
        partial = tuple(sorted(draw(st.sets(st.integers(1, length - 1))))) if length > 1 else ()
        segments.append(Segment(partial=partial, branch=draw(st.integers(1, 4)) if partial else 1))
    plain = schedule_of(*segments, length=length, solver=draw(st.sampled_from(("ddim", "dpmsolver++", "euler"))))
    return plain.model_copy(update=draw(some_corrections(plain)))


def program_of(schedule: Schedule) -> Program:
    return compile_program(schedule, LEVELS, branches=4)


def latent_of(size: ImageSize | None) -> Shape:
    return (4, *(size or (8, 8)))


def noise(seed: int, size: ImageSize | None = None) -> Tensor:
    return torch.randn(latent_of(size), generator=torch.Generator().manual_seed(seed))


def source_of(seed: int, size: ImageSize | None, masked: bool) -> EncodedSource:
    """Another latent than the noise; of a masked one the left half is kept, and one element on the right."""
    latent = noise(seed + 100, size)
    kept = torch.zeros(1, *latent.shape[1:], dtype=torch.bool)
    kept[..., : latent.shape[2] // 2], kept[0, 0, -1] = True, True
    return EncodedSource(latent, kept if masked else None)


def conditions(guidance: float | None, chunks: int = 1) -> tuple[Condition, Condition | None]:
    wanted, unwanted = (WANTED, UNWANTED) if chunks == 1 else (LONG, UNLONG)
    return wanted, None if guidance is None else unwanted


def task_of(job: Job, size: ImageSize | None = None, chunks: int = 1, edit: Edit | None = None) -> DenoisingTask:
    schedule, seed, guidance = job
    if edit is None:
        return DenoisingTask(program_of(schedule), guidance, size, chunks=chunks)
    strength, masked = edit
    program, source = program_of(schedule).starting(strength), source_of(seed, size, masked)
    return DenoisingTask(program, guidance, size, chunks=chunks, masked=masked, source=source)


def join(waves: Waves, job: Job, size: ImageSize | None = None, chunks: int = 1, edit: Edit | None = None) -> DenoisingTask:
    """Take a job in."""
    task = task_of(job, size, chunks, edit)
    waves.add(task, noise(job[1], size), *conditions(task.guidance, chunks))
    return task


def waves_of(
    network: UnrolledUNet,
    limit: int = 16,
    capacity: int = 64,
    policy: Policy | None = None,
    buckets: Buckets = EXACT,
    graphs: Graphs | None = None,
    others: Collection[ImageSize] = (),
    chunks: int = 1,
) -> Waves:
    layouts = {size: SlotLayout(latent_of(size), features_of(network, size)) for size in (None, *others)}
    slots = SlotMemory(layouts, WANTED, capacity, torch.device("cpu"), torch.float32, chunks=chunks)
    return Waves(network, slots, policy or FCFS(limit), buckets, graphs)


COUNTED = dict[ImageSize | None, Mapping[int, Shape]]()  # of the one network that there is here


def features_of(network: UnrolledUNet, size: ImageSize | None = None) -> Mapping[int, Shape]:
    """The shapes of the features by branch."""
    if size not in COUNTED:
        COUNTED[size] = count_steps(network.unet.config, latent_of(size), 5).features
    return COUNTED[size]


def plain(network: UnrolledUNet, job: Job, size: ImageSize | None = None, chunks: int = 1, edit: Edit | None = None) -> Tensor:
    """What the plain loop makes of the same task, alone."""
    schedule, seed, guidance = job
    program, source = program_of(schedule), None
    if edit is not None:
        program, one = program.starting(edit[0]), source_of(seed, size, edit[1])
        source = EncodedSource(one.latent[None], None if one.kept is None else one.kept[None])
    given = *conditions(guidance, chunks), guidance or 1.0
    return generate(network, program, noise(seed, size)[None], *given, source=source)[0]


def longest_wait(tasks: list[DenoisingTask], place: int, limit: int) -> int:
    """The most ticks until tasks[place] has advanced, however many tasks join behind it.

    Only tasks before it can be served first, since an advanced task goes to the back. Each tick advances the front task: at
    most `place` + 1 ticks. A tick for one need also takes the others before it that need the same, until one does not
    fit; as a task is one or two UNet rows, it then took at least limit − 1. So at most Σ ⌈UNet rows / (limit − 1)⌉ over
    the needs before it, itself included.
    """
    ahead = Counter[Need]()
    for task in tasks[: place + 1]:
        ahead[task.need] += task.unet_rows
    return min(place + 1, sum(math.ceil(count / max(1, limit - 1)) for count in ahead.values()))


class Traffic(RuleBasedStateMachine):
    """Requests come, go and are cancelled; the plain loop is the oracle."""

    def __init__(self, network: UnrolledUNet) -> None:
        super().__init__()
        self.network = network
        self.jobs: dict[DenoisingTask, Job] = {}
        self.edits: dict[DenoisingTask, Edit | None] = {}
        self.due: dict[DenoisingTask, int] = {}
        self.now = 0

    @initialize(
        limit=st.integers(1, 7),
        capacity=st.integers(2, 24),
        fcfs=st.booleans(),
        sizes=st.sets(st.integers(1, 9), max_size=4),
        captured=st.none() | st.sets(st.integers(1, 4)),
        others=st.sets(st.sampled_from(OTHERS), max_size=2),
        chunks=st.integers(1, CHUNKS),
    )
    def start(
        self,
        limit: int,
        capacity: int,
        fcfs: bool,
        sizes: set[int],
        captured: set[int] | None,
        others: set[ImageSize],
        chunks: int,
    ) -> None:
        self.limit, self.fcfs, self.sizes, self.chunks = limit, fcfs, (None, *sorted(others)), chunks
        buckets = Buckets(tuple(sorted(sizes)))
        policy = FCFS(limit) if fcfs else Balanced(CostCurve(buckets=buckets), limit)
        graphs = None if captured is None else FakeGraphs()
        self.waves = waves_of(self.network, limit, capacity, policy, buckets, graphs, others, chunks)
        for _ in self.waves.prepare(captured or (), chunks):
            pass
        layouts = {size: SlotLayout(latent_of(size), features_of(self.network, size)) for size in self.sizes}
        self.slot_bytes = {
            (size, count): max(slot_bytes(layout, WANTED.lengthened(count), torch.float32).values())
            for size, layout in layouts.items()
            for count in range(1, chunks + 1)
        }
        self.scratch = max(self.slot_bytes.values())

    @rule(
        schedule=schedules(),
        seed=st.integers(0, 9),
        guidance=st.sampled_from((None, 1.0, 2.0, 9.0)),
        copies=st.integers(1, 3),
        which=st.integers(0, len(OTHERS)),
        deadline=st.sampled_from((math.inf, 0.01, 0.03)),
        chunks=st.integers(1, CHUNKS),
        edit=st.none() | st.tuples(st.sampled_from((1.0, 0.7, 0.4)), st.booleans()),
    )
    def join(
        self,
        schedule: Schedule,
        seed: int,
        guidance: float | None,
        copies: int,
        which: int,
        deadline: float,
        chunks: int,
        edit: Edit | None,
    ) -> None:
        edit = edit if edit and int(schedule.solver.teacher_steps * edit[0]) else None
        size, chunks = self.sizes[which % len(self.sizes)], min(chunks, self.chunks)
        for copy in range(copies):
            job = (schedule, seed + copy, guidance)
            if not self.waves.slots.trial().take(task_of(job, size, chunks, edit).slot_count, size, chunks):
                return
            task = join(self.waves, job, size, chunks, edit)
            task.deadline = deadline
            self.jobs[task], self.edits[task] = job, edit
            self._expect(task)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(list(self.jobs)))
        self.waves.cancel(task)
        self.waves.cancel(task)  # twice is no error
        del self.jobs[task], self.due[task]

    @rule(ticks=st.integers(1, 4))
    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self._tick()

    def teardown(self) -> None:
        while self.jobs:
            self._tick()
        assert self.waves.tick() is None

    @invariant()
    def in_flight_are_exactly_the_jobs(self) -> None:
        if hasattr(self, "waves"):
            assert set(self.waves.tasks) == set(self.jobs)
            places = sorted(place for task in self.waves.tasks for place in self._places(task))
            assert all(end <= begin for (_, end), (begin, _) in pairwise([(0, self.scratch), *places]))
            assert not places or places[-1][1] <= self.waves.slots.bytes
            assert self.jobs or self.waves.slots.free == self.waves.slots.capacity

    def _places(self, task: DenoisingTask) -> Iterator[tuple[int, int]]:
        """The bytes that its slots are."""
        each = self.slot_bytes[task.size, task.chunks]
        return ((slot * each, (slot + 1) * each) for slot in task.held)

    def _expect(self, task: DenoisingTask) -> None:
        wait = longest_wait(self.waves.tasks, self.waves.tasks.index(task), self.limit)
        self.due[task] = self.now + wait

    def _tick(self) -> None:
        before = {task: (task.need, task.position) for task in self.jobs}
        wave = self.waves.tick(self.now / 1000)
        self.now += 1
        assert (wave is None) == (not before)
        if wave is None:
            return
        assert len(wave.tasks) == 1 or wave.unet_rows <= self.limit
        assert {before[task][0] for task in wave.tasks} == {wave.need}
        for task, (_, position) in before.items():
            assert task.position == position + (task in wave.tasks)
            if task not in wave.tasks:
                assert not self.fcfs or self.now < self.due[task], "a task waited too long"
            elif task.done:
                job = self.jobs.pop(task)
                del self.due[task]
                want = plain(self.network, job, task.size, task.chunks, self.edits[task])
                torch.testing.assert_close(task.latent, want, rtol=0, atol=ATOL)
            else:
                self._expect(task)


def test_every_task_ends_as_the_plain_loop_would_end_it(tiny: UNet2DConditionModel) -> None:
    run_state_machine_as_test(  # any callable will do, whatever its annotation says
        cast(type[Traffic], lambda: Traffic(UnrolledUNet(tiny))),
        settings=settings(max_examples=20, stateful_step_count=15, deadline=None),
    )


PARTIAL = Segment(partial=(1,), branch=2)


@pytest.fixture
def network(tiny: UNet2DConditionModel) -> UnrolledUNet:
    return UnrolledUNet(tiny)


def drain(waves: Waves) -> list[int]:
    """Run until nothing is in flight; how many UNet rows each wave had."""
    sizes = []
    while wave := waves.tick():
        sizes.append(wave.unet_rows)
    return sizes


def test_nothing_in_flight_is_no_wave(network: UnrolledUNet) -> None:
    assert waves_of(network).tick() is None


def test_tasks_at_different_places_of_different_schedules_and_solvers_share_one_call(network: UnrolledUNet) -> None:
    waves = waves_of(network)
    join(waves, (schedule_of(Segment(), Segment()), 0, None))
    assert waves.tick() is not None
    join(waves, (schedule_of(PARTIAL, solver="dpmsolver++"), 1, 3.0))
    wave = waves.tick()
    assert wave is not None
    assert wave.unet_rows == 3
    assert len({task.program for task in wave.tasks}) == 2


def test_a_task_larger_than_the_limit_runs_alone(network: UnrolledUNet) -> None:
    waves = waves_of(network, 1)
    for seed in range(2):
        join(waves, (schedule_of(PARTIAL), seed, 3.0))
    assert drain(waves) == [2, 2, 2, 2]


def test_an_odd_limit_leaves_a_place_free_among_guided_tasks(network: UnrolledUNet) -> None:
    """Why the bound on waiting divides by limit − 1: three tasks of two take three ticks, not ⌈6/3⌉ = 2."""
    waves = waves_of(network, 3)
    for seed in range(3):
        join(waves, (schedule_of(Segment()), seed, 3.0))
    assert longest_wait(waves.tasks, 2, 3) == 3
    assert drain(waves) == [2, 2, 2]


def test_a_smaller_task_fills_the_place_that_a_larger_one_cannot(network: UnrolledUNet) -> None:
    waves = waves_of(network, 3)
    for seed, guidance in enumerate((3.0, 3.0, None)):
        join(waves, (schedule_of(Segment()), seed, guidance))
    assert drain(waves) == [3, 2]


def test_a_minority_need_is_not_starved_by_a_steady_stream(network: UnrolledUNet) -> None:
    """New full steps arrive on every tick; the one task with a partial step still goes through."""
    waves = waves_of(network, 2)
    lonely = join(waves, (schedule_of(PARTIAL), 0, None))
    for seed in range(1, 5):
        join(waves, (schedule_of(Segment()), seed, None))
        join(waves, (schedule_of(Segment()), seed, None))
        waves.tick()
    assert lonely.done


def test_cancelling_a_task_changes_no_other_by_a_bit(network: UnrolledUNet) -> None:
    """Against the same traffic in which the cancelled task left of itself: the same calls, so bitwise."""
    kept = []
    for cancelled in (True, False):
        waves = waves_of(network)
        leaves = join(waves, (schedule_of(*(PARTIAL, PARTIAL) if cancelled else (PARTIAL,)), 1, None))
        stays = join(waves, (schedule_of(PARTIAL, PARTIAL), 0, 3.0))
        waves.tick()
        waves.tick()
        waves.cancel(leaves)
        assert drain(waves) == [2, 2]
        kept.append(stays.latent)
    assert torch.equal(*kept)


def test_memory_is_all_there_at_the_start_and_comes_back(network: UnrolledUNet) -> None:
    waves = waves_of(network, capacity=5)
    size = waves.slots.bytes
    first, _ = (join(waves, (schedule_of(PARTIAL), seed, 3.0)) for seed in range(2))
    assert waves.slots.free == 1, "guidance takes two"
    waves.cancel(first)
    join(waves, (schedule_of(PARTIAL), 2, 3.0))
    drain(waves)
    assert (waves.slots.free, waves.slots.bytes) == (5, size)


def test_a_smaller_branch_of_its_own_slot_says_what_memory_it_takes(network: UnrolledUNet) -> None:
    features = features_of(network)
    sizes = slot_bytes(SlotLayout((4, 8, 8), features), WANTED, torch.float16)
    context = 64  # the bytes of 5 × 6 numbers in float16, and those up to where the next part begins
    assert {branch: size - 2 * 4 * 4 * 8 * 8 - context for branch, size in sizes.items()} == {
        branch: 2 * shape[0] * shape[1] * shape[2] for branch, shape in features.items()
    }
    own = {None: SlotLayout((4, 8, 8), {2: features[2]})}
    slots = SlotMemory(own, WANTED, 3, torch.device("cpu"), torch.float16)
    assert slots.bytes == 4 * sizes[2], "one is nobody's"


def test_a_wave_has_one_size_and_images_of_all_sizes_end_as_alone(network: UnrolledUNet) -> None:
    waves = waves_of(network, buckets=Buckets((4, 8)), graphs=FakeGraphs(), others=OTHERS)
    shapes = list(waves.prepare({2}))
    assert {shape.need.size for shape in shapes} == {None, *OTHERS}
    tasks = [
        (join(waves, (schedule_of(PARTIAL, PARTIAL), seed, 3.0), size), seed, size)
        for seed in range(2)
        for size in (None, *OTHERS)
    ]
    for wave in iter(waves.tick, None):
        assert wave.captured
        assert {task.size for task in wave.tasks} == {wave.need.size}
    for task, seed, size in tasks:
        want = plain(network, (schedule_of(PARTIAL, PARTIAL), seed, 3.0), size)
        torch.testing.assert_close(task.latent, want, rtol=0, atol=ATOL)
    assert waves.slots.free == waves.slots.capacity


def test_graphs_are_captured_for_no_more_rows_than_there_are_slots_for(network: UnrolledUNet) -> None:
    """A large image's slots are few: waves of it never fill the largest buckets."""
    waves = waves_of(network, capacity=8, buckets=dense(8), graphs=FakeGraphs(), others=OTHERS, chunks=CHUNKS)
    slots, rows = waves.slots, dict[tuple[ImageSize | None, int], set[int]]()
    for shape in waves.prepare({2}, CHUNKS):
        rows.setdefault((shape.need.size, shape.need.chunks), set()).add(shape.rows)
    assert rows.keys() == {(size, chunks) for size in (None, *OTHERS) for chunks in (1, CHUNKS)}
    for (size, chunks), sizes in rows.items():
        most = slots.most(size, chunks)
        assert max(sizes) == dense(8).padded(min(most, 8)), "what is padded to it may come"
    assert min(max(sizes) for sizes in rows.values()) < 8


def test_images_with_and_without_a_source_share_waves_and_end_as_alone(network: UnrolledUNet) -> None:
    """As captured graphs, beside padding that has left what is not finite in the scratch slot."""
    waves = waves_of(network, capacity=12, buckets=Buckets((4, 8)), graphs=FakeGraphs())
    list(waves.prepare({2}))
    waves.slots.at()._feature[0] = waves.slots.at()._latent[0] = math.nan
    edits: list[Edit | None] = [None, (0.5, False), (0.5, True), (1.0, True)]
    job = (schedule_of(PARTIAL, PARTIAL), 0, 3.0)
    tasks = [join(waves, job, edit=edit) for edit in edits]
    assert waves.slots.free == 12 - 4 * 2 - 2, "a slot more for what is kept"
    rows = [wave.unet_rows for wave in iter(waves.tick, None) if wave.captured]
    assert rows[0] == 8
    for task, edit in zip(tasks, edits, strict=True):
        torch.testing.assert_close(task.latent, plain(network, job, edit=edit), rtol=0, atol=ATOL)
        if edit and edit[1]:
            source = source_of(0, None, masked=True)
            assert torch.equal(task.latent.where(source.kept, 0), source.latent.where(source.kept, 0))
    assert waves.slots.free == 12


def test_a_smaller_size_takes_its_own_bytes_and_a_larger_one_the_place_of_several(network: UnrolledUNet) -> None:
    small, large = OTHERS[0], OTHERS[2]
    waves = waves_of(network, capacity=4, others=(small, large))
    slots = waves.slots
    assert slots.most(small) > slots.most(None) == 4 > slots.most(large) > 0
    held = [slots.take(1, small) for _ in range(slots.most(small))]
    assert not slots.trial().take(1, large)
    for slot in held:
        slots.give_back(slot, small)
    assert slots.trial().take(slots.most(large), large)
    assert slots.trial().take(4), "a trial holds nothing"


@given(st.lists(st.tuples(st.sampled_from((64, 96, 160)), st.integers(1, 3), st.booleans()), max_size=30))
def test_a_room_hands_out_disjoint_bytes_within_its_bounds_or_nothing(wishes: list[tuple[int, int, bool]]) -> None:
    room, held = Room(160, 1600), list[tuple[int, int]]()
    for size, count, leaves in wishes:
        if leaves and held:
            old, slot = held.pop(0)
            room.give_back(old, [slot])
        places = {byte for old, slot in held for byte in range(slot * old, (slot + 1) * old)}
        free = [s for s in range(1600 // size) if s * size >= 160 and places.isdisjoint(range(s * size, (s + 1) * size))]
        assert room.free(size) == len(free)
        assert room.copy().take(size, count) == room.take(size, count) == (free[:count] if len(free) >= count else None)
        held += [(size, slot) for slot in free[:count]] if len(free) >= count else []


def test_a_latent_that_is_not_finite_fails_alone(network: UnrolledUNet) -> None:
    waves = waves_of(network)
    jobs = [(schedule_of(PARTIAL, PARTIAL), seed, 3.0) for seed in range(3)]
    tasks = [join(waves, job) for job in jobs]
    waves.slots.at().put(tasks[1].slots[0], torch.full((4, 8, 8), math.nan), WANTED)
    failed = [task for wave in iter(waves.tick, None) for task in wave.failed]
    assert failed == [tasks[1]]
    assert isinstance(tasks[1].error, FloatingPointError)
    assert tasks[1].latent is None or not torch.isfinite(tasks[1].latent).all()
    for i in (0, 2):
        torch.testing.assert_close(tasks[i].latent, plain(network, jobs[i]), rtol=0, atol=ATOL)


class Allergic(UnrolledUNet):
    """A UNet that breaks when it sees one particular latent, or more rows than its memory holds."""

    memory = 100
    poison = torch.zeros(0)

    def full(self, sample: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, dict[int, Tensor]]:
        if len(sample) > self.memory:
            raise MemoryError(f"{len(sample)} rows")
        if any(torch.equal(row, self.poison) for row in sample):
            raise RuntimeError("poisoned")
        return super().full(sample, *rest, **named)


def test_a_task_that_breaks_the_call_fails_alone(tiny: UNet2DConditionModel) -> None:
    network = Allergic(tiny)
    waves, jobs = waves_of(network), [(schedule_of(PARTIAL), seed, None) for seed in range(5)]
    tasks = [join(waves, job) for job in jobs]
    network.poison = noise(jobs[3][1])
    wave = waves.tick()
    assert wave is not None
    assert (wave.failed, str(tasks[3].error)) == ([tasks[3]], "poisoned")
    drain(waves)
    for task, job in zip(tasks, jobs, strict=True):
        if task is not tasks[3]:
            torch.testing.assert_close(task.latent, plain(UnrolledUNet(tiny), job), rtol=0, atol=ATOL)
    assert waves.slots.free == waves.slots.capacity


def test_a_wave_too_large_for_memory_runs_in_parts(tiny: UNet2DConditionModel) -> None:
    network = Allergic(tiny)
    network.memory = 3
    waves, jobs = waves_of(network), [(schedule_of(PARTIAL), seed, None) for seed in range(8)]
    tasks = [join(waves, job) for job in jobs]
    wave = waves.tick()
    assert wave is not None
    assert (len(wave.tasks), wave.failed) == (8, [])
    drain(waves)
    for task, job in zip(tasks, jobs, strict=True):
        torch.testing.assert_close(task.latent, plain(UnrolledUNet(tiny), job), rtol=0, atol=ATOL)


JOBS = [(schedule_of(PARTIAL, Segment(), solver="dpmsolver++"), 0, 3.0), (schedule_of(PARTIAL, PARTIAL), 1, None)]
JOBS += [(schedule_of(Segment(partial=(1,), branch=3), PARTIAL), seed, 2.0) for seed in (2, 3)]


def results(waves: Waves) -> list[Tensor]:
    """What becomes of `JOBS`, the last of which joins a wave later."""
    tasks = [join(waves, job) for job in JOBS[:-1]]
    waves.tick()
    tasks.append(join(waves, JOBS[-1]))
    drain(waves)
    return [task.latent for task in tasks if task.latent is not None]


def test_captured_waves_are_the_eager_ones_to_the_last_bit(network: UnrolledUNet) -> None:
    """At the same sizes: a capture is the same call, whatever slots, guidance and numbers its table names."""
    graphs = FakeGraphs()
    captured = waves_of(network, buckets=dense(8), graphs=graphs)
    shapes = list(captured.prepare({2, 3}))
    assert {shape.need for shape in shapes} == {Need("full", 0), Need("partial", 2), Need("partial", 3)}
    plain_ones = results(waves_of(network, buckets=dense(8)))
    assert all(map(torch.equal, results(captured), plain_ones))
    assert graphs.replays > 0


def test_captures_read_and_write_slots_and_table_where_they_were(network: UnrolledUNet) -> None:
    graphs = FakeGraphs()
    waves = waves_of(network, buckets=dense(8), graphs=graphs)
    slots = waves.slots
    graphs.fixed = lambda: [slots._memory, waves._runner._staging.target]
    list(waves.prepare({2, 3}))
    assert len(results(waves)) == len(JOBS), "a replay that finds one elsewhere fails its wave"
    fixed = {place for calls in graphs.captures for _, shapes in calls._ops for place in places(shapes)}
    assert fixed == {tensor.untyped_storage().data_ptr() for tensor in graphs.fixed()}


def places(shapes: list[Any]) -> list[int]:
    return [shape[3] for shape in shapes if isinstance(shape, tuple) and len(shape) == 4 and shape[3] is not None]


def test_captures_begin_with_the_largest_and_are_made_once(network: UnrolledUNet) -> None:
    waves = waves_of(network, buckets=dense(6), graphs=FakeGraphs())
    rows = [shape.rows for shape in waves.prepare({1})]
    assert rows == sorted(rows, reverse=True)
    assert set(rows) == {1, 2, 4, 6}
    assert not list(waves.prepare({1}))
    assert {shape.need for shape in waves.prepare({2})} == {Need("full", 0), Need("partial", 2)}, "a full step keeps both now"
    assert not list(waves.prepare({1, 2}))


def test_a_wave_of_a_branch_that_was_not_captured_runs_all_the_same(network: UnrolledUNet) -> None:
    waves = waves_of(network, buckets=dense(4), graphs=FakeGraphs())
    list(waves.prepare({1}))
    task = join(waves, (schedule_of(PARTIAL), 0, None))
    assert [wave.captured for wave in iter(waves.tick, None)] == [False, False]
    torch.testing.assert_close(task.latent, plain(network, (schedule_of(PARTIAL), 0, None)), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("error", "kept"), [(RuntimeError("capturing failed"), False), (torch.OutOfMemoryError("no memory for a capture"), True)]
)
def test_a_capture_that_fails_leaves_waves_that_run(network: UnrolledUNet, error: Exception, kept: bool) -> None:
    """Out of memory, what was captured before is as good as it was, and what was not may be once there is memory again."""
    graphs = FakeGraphs()
    waves = waves_of(network, buckets=dense(4), graphs=graphs)
    list(waves.prepare({2}))
    graphs.error = error
    with pytest.raises(type(error)):
        list(waves.prepare({1}))
    graphs.error = None
    task = join(waves, (schedule_of(PARTIAL), 0, None))
    assert [wave.captured for wave in iter(waves.tick, None)] == [kept, kept]
    torch.testing.assert_close(task.latent, plain(network, (schedule_of(PARTIAL), 0, None)), rtol=0, atol=ATOL)
    assert bool(list(waves.prepare({1}))) is kept


def test_padding_is_counted_and_changes_nobodys_slot(network: UnrolledUNet) -> None:
    waves = waves_of(network, buckets=Buckets((4,)))
    resting = join(waves, (schedule_of(PARTIAL), 0, 3.0))
    resting.yields = True
    before = [tensor.clone() for tensor in (waves.slots.at().latent(slot) for slot in resting.slots)]
    join(waves, (schedule_of(PARTIAL), 1, 3.0))
    wave = waves.tick()
    assert wave is not None
    assert (wave.unet_rows, wave.padding) == (2, 2)
    assert all(map(torch.equal, before, (waves.slots.at().latent(slot) for slot in resting.slots)))


def test_tasks_that_yield_run_while_no_other_is_there_and_those_that_stand_back_after_them(network: UnrolledUNet) -> None:
    waves = waves_of(network)
    back, yielding, first = (join(waves, (schedule_of(Segment(), Segment()), seed, 3.0)) for seed in range(3))
    back.yields = yielding.yields = True
    back.stands_back = True
    assert [wave.tasks for wave in iter(waves.tick, None)] == [[task] for task in (first, yielding, back) for _ in range(2)]


def test_a_lost_device_is_nobodys_fault(tiny: UNet2DConditionModel) -> None:
    class Lost(UnrolledUNet):
        def full(self, *rest: Any, **named: Any) -> tuple[Tensor, dict[int, Tensor]]:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    waves = waves_of(Lost(tiny))
    tasks = [join(waves, (schedule_of(PARTIAL), seed, 3.0)) for seed in range(3)]
    with pytest.raises(DeviceLost, match="illegal memory access"):
        waves.tick()
    assert [task.error for task in tasks] == [None] * 3
    for task in tasks:
        waves.cancel(task)
    assert waves.slots.free == waves.slots.capacity
