"""A request's LoRAs from its body to its plan: which schedules run with them, what is said, and what ends the waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from memory_store import MemoryStore
from server_model import small_model

from registry.catalog import Catalog
from registry.corrections import Correction
from registry.errors import FlexiError, InvalidInput
from registry.schedule import Schedule, Segment
from server.access.keys import ANONYMOUS, Key
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.image_task import ImageResult
from server.errors import Cancelled, ClientGone, DeadlineExceeded, GaveWay, QuotaExceeded
from server.experiments.active import ActiveExperiments
from server.loras.adapter_set import BASE, AdapterSet, LoraUse
from server.request_fields import LoraWish
from server.requests.context import RequestContext
from server.requests.generation import Generation, Residency
from server.requests.lora_choice import LoraChoice
from server.requests.made import ImageMade
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

STYLE = AdapterSet.of([LoraUse("style", "0" * 64, 0.5)], 10)
OFFERED = SimpleNamespace(chosen=lambda wishes: STYLE)
ASKED = {"prompt": "a", "loras": [LoraWish(name="style", scale=0.5)]}


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", 2.0


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture(scope="module")
def schedules(model):
    """`fast` jumps steps; `fitted` computes all of them, with corrections."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    plain = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),))
    fast = plain.model_copy(update={"segments": (Segment(), Segment())})
    fitted = plain.model_copy(update={"segments": (Segment(),) * 4, "corrections": (Correction(latent=0.1),) * 4})
    for tier, schedule in (("fast", fast), ("fitted", fitted)):
        catalog.publish(schedule)
        catalog.promote(tier, schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 4)
    assert Watch(schedules, lambda: catalog).refresh()
    return schedules


def planner_of(model, schedules, loras: LoraChoice | None, forecast=lambda *_: 0.0) -> Planner:
    return Planner(schedules, ActiveExperiments(lambda: None, schedules), model, forecast, Settings(), loras=loras)


def planned(planner: Planner, **fields):
    return asyncio.run(planner.plan(GenerateRequest(**ASKED | fields), "id", ANONYMOUS))


@pytest.mark.parametrize(("tier", "warned"), [("fast", True), ("fitted", True), ("reference", False)])
def test_a_schedule_that_was_searched_without_loras_says_so_and_the_full_model_does_not(model, schedules, tier, warned):
    plan = planned(planner_of(model, schedules, LoraChoice(OFFERED)), tier=tier)
    assert [warning.code for warning in plan.warnings] == ["lora_not_validated"] * warned
    assert all("style:0.5" in warning.message for warning in plan.warnings)
    assert {spec.adapters for spec in plan.specs} == {plan.adapters} == {STYLE}


def test_where_the_operator_says_so_only_the_full_model_runs_with_loras(model, schedules):
    planner = planner_of(model, schedules, LoraChoice(OFFERED, on_schedules=False))
    for fields in ({"tier": "fast"}, {"tier": "fitted"}, {}):
        with pytest.raises(InvalidInput, match="ask for tier reference") as caught:
            planned(planner, **fields)
        assert caught.value.param == "loras"
    assert planned(planner, tier="reference").warnings == ()
    assert planned(planner, tier="fast", loras=None).adapters == BASE


def test_without_a_folder_they_are_refused_and_an_empty_list_is_none(model, schedules):
    planner = planner_of(model, schedules, LoraChoice())
    with pytest.raises(InvalidInput, match="adds none") as caught:
        planned(planner)
    assert caught.value.param == "loras"
    assert planned(planner, loras=[]).adapters == BASE


def test_what_adding_them_takes_is_predicted_and_auto_counts_it(model, schedules):
    def forecast(program, *_):
        return float(len(program.steps))

    seconds = {BASE: 0.0, STYLE: 3.0}
    planner = planner_of(model, schedules, LoraChoice(OFFERED, seconds=seconds.__getitem__), forecast)
    steps = {tier: len(schedules.tier(tier).program.steps) for tier in ("fast", "fitted")}
    assert planned(planner, tier="fitted").predicted == steps["fitted"] + 3
    deadline = 1000 * (steps["fitted"] + 1)
    assert planned(planner, tier="auto", deadline_ms=deadline, loras=None).entry.tier == "fitted"
    assert planned(planner, tier="auto", deadline_ms=deadline).entry.tier == "fast"


class NeverThere(Residency):
    """What a request needs and never gets."""

    def __init__(self):
        self.entered, self.left, self.asked = [], [], asyncio.Event()

    async def enter(self, plan):
        self.entered.append(plan)
        self.asked.set()
        await asyncio.Event().wait()

    def leave(self, plan):
        self.left.append(plan)


@pytest.mark.parametrize(("how", "error"), [("late", DeadlineExceeded), ("deleted", Cancelled), ("closed", ClientGone)])
def test_a_deadline_delete_and_a_closed_connection_end_the_wait(model, schedules, how: str, error: type[FlexiError]):
    async def go():
        residency = NeverThere()
        planner = planner_of(model, schedules, LoraChoice(OFFERED))
        generation = Generation(planner, SimpleNamespace(submit=None), Quotas(), residencies=[residency])

        async def gone():
            await residency.asked.wait()
            if how == "deleted":
                assert generation.running.cancel(ANONYMOUS.name, "id")
            if how != "closed":
                await asyncio.Event().wait()

        request = GenerateRequest(**ASKED | ({"deadline_ms": 50} if how == "late" else {}))
        with pytest.raises(error):
            await generation.answer(request, RequestContext("id", ANONYMOUS), gone())
        assert residency.entered == residency.left != []

    asyncio.run(asyncio.wait_for(go(), 60))


class HasToGo(Residency):
    """What a client wants once images are queued."""

    def __init__(self):
        self.wanted = asyncio.Event()

    async def enter(self, plan):
        pass

    def leave(self, plan):
        pass

    async def gives_way(self, plan):
        await self.wanted.wait()


def test_a_key_that_has_nothing_left_has_nothing_loaded(model, schedules):
    async def go():
        residency = NeverThere()
        planner = planner_of(model, schedules, LoraChoice(OFFERED))
        generation = Generation(planner, SimpleNamespace(submit=None), Quotas(), residencies=[residency])
        key = Key("poor", 1, None)
        with pytest.raises(InvalidInput, match="may use 1 in a minute"):
            await generation.answer(GenerateRequest(**ASKED), RequestContext("id", key), asyncio.Event().wait())
        assert not residency.entered
        macs = (await planner.plan(GenerateRequest(**ASKED), "id", ANONYMOUS)).macs
        key = Key("impatient", macs, None)
        request = GenerateRequest(**ASKED, deadline_ms=50)
        with pytest.raises(DeadlineExceeded):
            await generation.answer(request, RequestContext("id", key), asyncio.Event().wait())
        assert residency.entered
        generation._quotas.take(key, macs)  # who waited in vain has all of it still

    asyncio.run(asyncio.wait_for(go(), 60))


def test_a_background_stream_that_gives_way_pays_for_the_images_it_got(model, schedules):
    async def go():
        residency, futures = HasToGo(), [Future(), Future()]
        planner = planner_of(model, schedules, LoraChoice(OFFERED))
        request = GenerateRequest(**ASKED, priority="background", num_images=2)
        plan = await planner.plan(request, "id", ANONYMOUS)
        key, pixels = Key("worker", plan.macs, None), torch.zeros(8, 8, 3, dtype=torch.uint8)
        futures[0].set_result(ImageResult(pixels, plan.macs // 2, Counter(), 0.0, 0.0))
        generation = Generation(planner, SimpleNamespace(submit=lambda *_: futures), Quotas(), residencies=[residency])
        stream = generation.stream(request, RequestContext("id", key), 0)
        assert isinstance(await anext(stream), ImageMade)
        residency.wanted.set()
        with pytest.raises(GaveWay):
            await anext(stream)
        generation._quotas.take(key, plan.macs // 2)  # the other half is there
        with pytest.raises(QuotaExceeded):
            generation._quotas.take(key, plan.macs // 2)

    asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("background", [True, False])
def test_background_work_gives_way_is_not_billed_and_may_come_again(model, schedules, background):
    async def go():
        residency, futures = HasToGo(), [Future()]
        planner = planner_of(model, schedules, LoraChoice(OFFERED))
        key = Key("worker", (await planner.plan(GenerateRequest(**ASKED), "id", ANONYMOUS)).macs, None)

        def submit(specs, preview=None, progress=None):
            residency.wanted.set()
            return futures

        generation = Generation(planner, SimpleNamespace(submit=submit), Quotas(), residencies=[residency])
        request = GenerateRequest(**ASKED, priority="background" if background else "normal", deadline_ms=500)
        with pytest.raises(GaveWay if background else DeadlineExceeded) as caught:
            await generation.answer(request, RequestContext("id", key), asyncio.Event().wait())
        assert futures[0].cancelled()
        if background:
            assert caught.value.retry_after
            generation._quotas.take(key, key.macs_per_minute)  # all of a minute's is there

    asyncio.run(asyncio.wait_for(go(), 60))
