"""A candidate in the shadow: what it is compared by, that nobody gets its images or pays for them, and its faults."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore
from pictures import contents
from server_model import small_model
from typing_extensions import override

from engine.images import levels
from engine.sampler import generate
from evaluation import psnr
from registry.catalog import Catalog
from registry.experiments.candidates import DeclaredCandidate
from registry.schedule import Schedule, Segment
from registry.tiers import REFERENCE
from server.access.keys import ANONYMOUS, Key
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.admission import Admission
from server.batching.model_engine import ModelEngine
from server.errors import GenerationFailed, NotReady
from server.experiments.active import ActiveExperiments
from server.requests import idle_images
from server.requests.context import RequestContext
from server.requests.fidelity import Fidelities
from server.requests.generation import Generation
from server.requests.idle_images import LABEL, IdleImages
from server.requests.planner import Planner
from server.requests.shadow_candidate import ActiveCandidate, Candidates, ShadowCandidate
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", 2.0


class OneCandidate(Candidates, list):
    """The candidate of every tier; (plan, pair) of each image that was made again."""

    def __init__(self, entry, share=1.0):
        candidate = DeclaredCandidate(
            tier="fast", digest=entry.digest, version=2, share=share, until=datetime.max.replace(tzinfo=UTC)
        )
        self.active = ActiveCandidate(candidate, entry)

    @override
    def of(self, plan):
        return self.active

    @override
    def paired(self, plan, pair):
        self.append((plan, pair))


class Spy:
    """The engine, and every spec that it was given: `fails` names a schedule whose images cannot be made."""

    def __init__(self, engine, fails="", error=None):
        self.specs, self._engine, self._fails, self._error = [], engine, fails, error

    def submit(self, specs, preview=None, progress=None):
        self.specs += specs
        if specs[0].tier == LABEL and specs[0].program.schedule.digest == self._fails:
            failed = Future()
            failed.set_exception(self._error)
            return [failed]
        return self._engine.submit(specs, preview, progress)

    @property
    def again(self):
        """Digests of what made images again, in their order."""
        return [spec.program.schedule.digest for spec in self.specs if spec.tier == LABEL]


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def schedules(model):
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for segments in (2, 1):
        catalog.publish(Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * segments))
    catalog.promote("fast", 1)
    schedules = ActiveSchedules(lambda: catalog, model, 4)
    Watch(schedules, lambda: catalog).refresh()
    schedules.candidate = schedules.load(catalog.version(2).digest)
    return schedules


@pytest.fixture
def engine(model):
    engine = ModelEngine(model, Admission(60), 4)
    engine.start()
    yield engine
    engine.close()


async def never():
    await asyncio.Event().wait()


class Server:
    """Serves requests, and makes their images again by the candidate."""

    def __init__(self, model, schedules, engine, share=1.0, extractor=None, budget=None, **faults):
        self.model, self.schedules, self.spy, self.quotas = model, schedules, Spy(engine, **faults), Quotas()
        self.candidates = OneCandidate(schedules.candidate, share)
        self.idle = IdleImages(self.spy, lambda spec: spec.teacher_macs, budget)
        teacher = lambda: schedules.tier(REFERENCE)  # noqa: E731 - as the opener has it
        self.shadow = ShadowCandidate(self.idle, teacher, Fidelities(extractor), self.candidates)

    def serve(self, *requests, key=ANONYMOUS, count=1):
        """The answers; all was made again, too."""

        async def go():
            planner = Planner(
                self.schedules, ActiveExperiments(lambda: None, self.schedules), self.model, lambda *_: 0.0, Settings()
            )
            generation = Generation(planner, self.spy, self.quotas, [self.shadow])
            contexts = [RequestContext("id", key=key) for _ in requests]
            answers = [
                await generation.answer(GenerateRequest(**fields), context, never())
                for fields, context in zip(requests, contexts, strict=True)
            ]
            while self.idle:
                await asyncio.sleep(0.01)
            return answers

        return asyncio.run(asyncio.wait_for(go(), 120))


def plain(model, entry, seed):
    condition, negative = model.encode(["a"]), model.negative([""])
    image = generate(model.network, entry.program, model.noise(seed)[None], condition, negative, 2.0)
    return levels(model.decode(image))[0] / 255


def test_both_are_held_against_the_teachers_image_of_the_same_noise_which_is_made_once(model, schedules, engine):
    server = Server(model, schedules, engine)
    server.serve({"prompt": "a", "seed": 5, "num_images": 2})
    active, candidate, teacher = schedules.tier("fast"), schedules.candidate, schedules.tier(REFERENCE)
    assert len(server.candidates) == 2
    wanted = []
    for seed in (5, 6):
        reference = plain(model, teacher, seed)
        wanted.append(tuple(psnr(float(((plain(model, one, seed) - reference) ** 2).mean())) for one in (active, candidate)))
    got = [tuple(image.comparison.psnr for image in pair.images) for _, pair in server.candidates]
    assert sorted(got) == [pytest.approx(pair, abs=0.01) for pair in sorted(wanted)]
    macs = [model.macs.of_program(entry.program, 2) for entry in (active, candidate)]
    assert [[image.macs for image in pair.images] for _, pair in server.candidates] == [macs, macs]
    assert all(image.seconds > 0 for _, pair in server.candidates for image in pair.images)
    assert sorted(server.spy.again) == sorted(2 * [teacher.digest, active.digest, candidate.digest])


def test_either_of_a_pair_is_first_now_and_then_and_the_teacher_before_both(model, schedules, engine):
    server = Server(model, schedules, engine)
    for seed in (5, 6):
        server.serve({"prompt": "a", "seed": seed})
    active, candidate, teacher = schedules.tier("fast").digest, schedules.candidate.digest, schedules.tier(REFERENCE).digest
    assert server.spy.again == [teacher, active, candidate, teacher, candidate, active]


def test_nobody_waits_or_pays_for_it_and_the_answer_is_the_same(model, schedules, engine):
    key, request = Key("shop", macs_per_minute=10**15, queue_seconds=None), {"prompt": "a", "seed": 5}
    server, without = Server(model, schedules, engine), Server(model, schedules, engine, share=1e-9)
    taken = []
    for one in (server, without):
        one.quotas.take = lambda key, macs: taken.append((key.name, macs))
    (shadowed,), (alone,) = server.serve(request, key=key), without.serve(request, key=key)
    assert server.candidates
    assert without.candidates == []
    assert contents(shadowed.images) == contents(alone.images)
    assert shadowed.schedule == alone.schedule
    macs = model.macs.of_program(schedules.tier("fast").program, 2)
    assert taken == [("shop", macs)] * 2
    made = server.spy.specs[1:]
    assert [(spec.idle, spec.background, spec.tier, spec.previews) for spec in made] == [(True, False, LABEL, 0)] * 3


def test_what_waits_is_bounded_and_what_is_dropped_is_counted(model, schedules, engine, monkeypatch):
    monkeypatch.setattr(idle_images, "PENDING", 2)
    counter = metrics.candidate_images_total.labels("fast", "dropped")._value
    server, before = Server(model, schedules, engine), counter.get()
    server.serve({"prompt": "a", "seed": 5, "num_images": 4})
    assert len(server.candidates) == 2
    assert counter.get() == before + 2


def test_its_macs_count_for_the_shadows_budget(model, schedules, engine):
    counter = metrics.candidate_images_total.labels("fast", "over_budget")._value
    before, one = counter.get(), model.macs.of_program(schedules.tier(REFERENCE).program, 2)
    server = Server(model, schedules, engine, budget=7 * one)  # three for each image
    server.serve({"prompt": "a", "seed": 5, "num_images": 4})
    assert len(server.candidates) == 2
    assert counter.get() == before + 2


def test_the_share_is_kept(model, schedules, engine):
    server = Server(model, schedules, engine, share=0.5)
    server.shadow._dice = iter([0.4, 0.5, 0.9, 0.1]).__next__
    server.serve({"prompt": "a", "num_images": 4})
    assert len(server.candidates) == 2


def test_an_image_that_only_the_candidate_cannot_make_is_told_of_it_and_a_stopping_server_is_not(model, schedules, engine):
    fails = schedules.candidate.digest
    broken = Server(model, schedules, engine, fails=fails, error=GenerationFailed("not finite"))
    broken.serve({"prompt": "a", "seed": 5}, {"prompt": "a", "seed": 6})
    assert [(pair.images, pair.failed) for _, pair in broken.candidates] == [(None, "generation_failed")] * 2
    stopping = Server(model, schedules, engine, fails=fails, error=NotReady("stopping"))
    stopping.serve({"prompt": "a", "seed": 5})
    assert stopping.candidates == []
    other = Server(model, schedules, engine, fails=schedules.tier("fast").digest, error=GenerationFailed("not finite"))
    other.serve({"prompt": "a", "seed": 5})
    assert other.candidates == []


def test_failed_requests_and_the_teachers_own_images_are_not_made_again(model, schedules, engine):
    server = Server(model, schedules, engine)
    server.serve({"prompt": "a", "tier": "reference"})
    with pytest.raises(GenerationFailed):
        server.serve({"prompt": "poison"})
    assert server.spy.again == []
    server.candidates.active = ActiveCandidate(server.candidates.active.candidate, schedules.tier(REFERENCE))
    server.serve({"prompt": "a"})
    assert server.spy.again == []


def test_features_give_distances_and_metrics_for_both(model, schedules, engine):
    def read():
        names = ("active", "candidate")
        return [metrics.candidate_psnr.labels("fast", name)._sum.get() for name in names] + [
            metrics.candidate_macs_total.labels("fast", name)._value.get() for name in names
        ]

    server = Server(model, schedules, engine, extractor=lambda images: images.flatten(1).double().numpy())
    before = read()
    server.serve({"prompt": "a", "seed": 5})
    ((_, pair),) = server.candidates
    assert [image.comparison.distance for image in pair.images] == [
        pytest.approx((3 * 8 * 8 * 10 ** (-image.comparison.psnr / 10)) ** 0.5, rel=1e-3) for image in pair.images
    ]
    told = [image.comparison.psnr for image in pair.images] + [image.macs for image in pair.images]
    assert [after - was for after, was in zip(read(), before, strict=True)] == pytest.approx(told)
