"""The shadow teacher: what it compares, what it may spend, and that no client's image is another for it."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory_store import MemoryStore
from server_model import small_model
from typing_extensions import override

from engine.images import levels
from engine.sampler import generate
from engine.unrolled import UnrolledUNet
from evaluation import frechet_distance, psnr
from registry.catalog import Catalog
from registry.schedule import Schedule, Segment
from registry.tiers import REFERENCE
from server.access.keys import ANONYMOUS
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.admission import Admission
from server.batching.model_engine import ModelEngine
from server.errors import GenerationFailed
from server.experiments.active import ActiveExperiments
from server.loras.adapter_set import AdapterSet, LoraUse
from server.request_fields import LoraWish
from server.requests import fidelity, idle_images
from server.requests.context import OK, RequestContext
from server.requests.fidelity import FeatureWindow, Fidelities
from server.requests.generation import Generation
from server.requests.idle_images import IdleImages
from server.requests.lora_choice import LoraChoice
from server.requests.planner import Planner
from server.requests.shadow import ComparisonObserver, ShadowTeacher
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", 2.0


class ComparisonLog(ComparisonObserver, list):
    """(plan, comparison) of each image that was compared."""

    @override
    def compared(self, plan, comparison):
        self.append((plan, comparison))


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def schedules(model):
    store = MemoryStore()
    catalog = Catalog(store, model.ref.name, author="test")
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(), Segment()))
    catalog.publish(schedule)
    catalog.promote("fast", schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 4)
    Watch(schedules, lambda: catalog).refresh()
    return schedules


@pytest.fixture
def engine(model):
    engine = ModelEngine(model, Admission(60), 4)
    engine.start()
    yield engine
    engine.close()


async def never():
    await asyncio.Event().wait()


def served(model, schedules, engine, shadow_teacher, *requests, loras=None):
    """The answers; the shadow has finished too."""

    async def go():
        active = ActiveExperiments(lambda: None, schedules)
        planner = Planner(schedules, active, model, engine.forecast, Settings(), loras=loras)
        generation = Generation(planner, engine, Quotas(), [shadow_teacher])
        answers = [await generation.answer(GenerateRequest(**fields), RequestContext("id"), never()) for fields in requests]
        while shadow_teacher._idle:
            await asyncio.sleep(0.01)
        return answers

    return asyncio.run(asyncio.wait_for(go(), 120))


def shadowing(engine, schedules, comparisons, share=1.0, budget=None, features=None, borrow=lambda *_: None):
    idle = IdleImages(engine, lambda spec: spec.teacher_macs, budget, borrow)
    return ShadowTeacher(idle, lambda: schedules.tier(REFERENCE), Fidelities(features), share, [comparisons])


def test_it_compares_with_the_teachers_image_of_the_same_noise(model, schedules, engine):
    comparisons = ComparisonLog()
    shadow_teacher = shadowing(engine, schedules, comparisons)
    served(model, schedules, engine, shadow_teacher, {"prompt": "a", "seed": 5, "num_images": 2})
    assert len(comparisons) == 2
    assert {(plan.entry.tier, comparison.distance) for plan, comparison in comparisons} == {("fast", None)}
    condition, negative = model.encode(["a"]), model.negative([""])
    expected = []
    for seed in (5, 6):
        images = [
            levels(model.decode(generate(model.network, entry.program, model.noise(seed)[None], condition, negative, 2.0)))[0]
            / 255
            for entry in (schedules.tier("fast"), schedules.tier(REFERENCE))
        ]
        expected.append(psnr(float(((images[0] - images[1]) ** 2).mean())))
    assert sorted(comparison.psnr for _, comparison in comparisons) == pytest.approx(sorted(expected), abs=0.01)


def test_an_image_with_loras_is_compared_with_the_teachers_image_with_the_same(model, schedules):
    """Which are stood for by a network with other weights."""
    unet = deepcopy(model.network.unet)
    with torch.no_grad():
        unet.conv_out.weight *= 1.5
    other, asked = replace(model, network=UnrolledUNet(unet)), AdapterSet.of([LoraUse("style", "0" * 64, 1.0)], 1)
    loras = LoraChoice(SimpleNamespace(chosen=lambda wishes: asked))
    engine, borrowed = ModelEngine(model, Admission(60), 4, adapted={asked: other}.__getitem__), []
    engine.start()
    comparisons = ComparisonLog()
    shadow_teacher = shadowing(engine, schedules, comparisons, borrow=lambda *lent: borrowed.append(lent[0]))
    wish = {"prompt": "a", "seed": 5, "loras": [LoraWish(name="style")]}
    (answer,) = served(model, schedules, engine, shadow_teacher, wish, loras=loras)
    engine.close()
    assert [(lora.name, lora.scale) for lora in answer.loras] == [("style", 1.0)]
    assert borrowed == [asked]
    condition, negative = model.encode(["a"]), model.negative([""])
    images = [
        levels(model.decode(generate(other.network, entry.program, model.noise(5)[None], condition, negative, 2.0)))[0] / 255
        for entry in (schedules.tier("fast"), schedules.tier(REFERENCE))
    ]
    ((_, comparison),) = comparisons
    assert comparison.psnr == pytest.approx(psnr(float(((images[0] - images[1]) ** 2).mean())), abs=0.01)


def test_the_teacher_is_not_held_against_itself_and_failures_not_at_all(model, schedules, engine):
    comparisons = ComparisonLog()
    shadow_teacher = shadowing(engine, schedules, comparisons)
    served(model, schedules, engine, shadow_teacher, {"prompt": "a", "tier": "reference"})
    with pytest.raises(GenerationFailed):
        served(model, schedules, engine, shadow_teacher, {"prompt": "poison"})
    assert comparisons == []


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 4)])
def test_the_share_is_kept(model, schedules, engine, share, expected):
    comparisons = ComparisonLog()
    served(model, schedules, engine, shadowing(engine, schedules, comparisons, share), {"prompt": "a", "num_images": 4})
    assert len(comparisons) == expected


def test_the_budget_is_kept(model, schedules, engine):
    comparisons, image_macs = ComparisonLog(), model.macs.of_program(schedules.tier(REFERENCE).program, 2)
    shadow_teacher = shadowing(engine, schedules, comparisons, budget=int(2.5 * image_macs))
    served(model, schedules, engine, shadow_teacher, {"prompt": "a", "num_images": 4})
    assert len(comparisons) == 2


def test_a_budget_of_less_than_one_image_makes_none_and_is_nobodys_fault(model, schedules, engine):
    comparisons, over_budget = ComparisonLog(), metrics.shadow_images_total.labels("over_budget")._value
    before = over_budget.get()
    (answer,) = served(model, schedules, engine, shadowing(engine, schedules, comparisons, budget=1), {"prompt": "a"})
    assert answer.tier == "fast"
    assert comparisons == []
    assert over_budget.get() == before + 1


def test_a_comparison_that_fails_in_any_way_is_counted(model, schedules, engine):
    class Broken(ComparisonObserver):
        @override
        def compared(self, plan, comparison):
            raise RuntimeError("disk full")

    failed = metrics.shadow_images_total.labels("failed")._value
    before = failed.get()
    served(model, schedules, engine, shadowing(engine, schedules, Broken()), {"prompt": "a"})
    assert failed.get() == before + 1


def test_what_waits_is_bounded(model, schedules, monkeypatch):
    monkeypatch.setattr(idle_images, "PENDING", 2)

    class Busy:
        """An engine that never idles."""

        def submit(self, specs, preview=None, progress=None):
            return [Future() for _ in specs]

    async def go():
        planner = Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.0, Settings())
        shadow_teacher = shadowing(Busy(), schedules, ComparisonLog())
        plan = await planner.plan(GenerateRequest(prompt="a", num_images=4), "id", ANONYMOUS)
        shadow_teacher.ended(RequestContext("id", plan=plan, results=dict.fromkeys(range(4)), code=OK), plan, 0.1)
        idle = shadow_teacher._idle
        assert len(idle) == 2
        idle.close()
        await asyncio.gather(*idle._tasks, return_exceptions=True)

    asyncio.run(go())


def test_the_running_rfid_is_the_frechet_distance_of_the_newest(monkeypatch):
    monkeypatch.setattr(fidelity, "FEWEST", 4)
    monkeypatch.setattr(fidelity, "EVERY", 2)
    dice = np.random.default_rng(0)
    ours, teachers = dice.normal(size=(6, 3)), dice.normal(size=(6, 3))
    window = FeatureWindow("d")
    seen = [window.add(a, b) for a, b in zip(ours, teachers, strict=True)]
    assert [value is None for value in seen] == [True, True, True, False, True, False]
    assert seen[-1] == pytest.approx(frechet_distance(ours, teachers))


def test_features_give_a_distance_and_metrics(model, schedules, engine):
    comparisons = ComparisonLog()
    shadow_teacher = shadowing(engine, schedules, comparisons, features=lambda images: images.flatten(1).double().numpy())
    before = metrics.fidelity_psnr.labels("fast", "none")._sum.get()
    served(model, schedules, engine, shadow_teacher, {"prompt": "a", "seed": 1})
    ((_, comparison),) = comparisons
    assert comparison.distance == pytest.approx(math.sqrt(3 * 8 * 8 * 10 ** (-comparison.psnr / 10)), rel=1e-3)
    assert metrics.fidelity_psnr.labels("fast", "none")._sum.get() == pytest.approx(before + comparison.psnr)


def test_a_teachers_image_that_is_not_finite_is_compared_with_nothing(model, schedules, engine, monkeypatch):
    comparisons, plain = ComparisonLog(), type(model).decode_later
    failed = metrics.shadow_images_total.labels("failed")._value.get()
    calls = []

    def decode(self, latents):
        calls.append(latents)
        made = plain(self, latents)
        return made if len(calls) == 1 else made._replace(finite=~made.finite)

    for method in ("decode_later", "decode_again"):
        monkeypatch.setattr(type(model), method, decode)
    served(model, schedules, engine, shadowing(engine, schedules, comparisons), {"prompt": "a", "seed": 1})
    assert len(calls) > 1
    assert comparisons == []
    assert metrics.shadow_images_total.labels("failed")._value.get() == failed + 1


def test_psnr():
    assert psnr(0.0) == 100
    assert psnr(0.01) == pytest.approx(20)
