"""Which models are in memory: by least recent use, never one with a request under way, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.errors import Overloaded
from server.batching.admission import Admission
from server.errors import NotReady
from server.models import residence
from server.models.residence import Residence
from server.models.served_model import ServedModel

MEMORY = 20 << 20


class Site:
    """Three models of ten MiB each, and memory for two. Loading is a gate that a test may shut."""

    def __init__(self, sizes=(10, 10, 10), max_seconds=600.0):
        admission = Admission(max_seconds, pace=1.0)
        self.models = [ServedModel(Path(name), name, (), "balanced", admission.beside()) for name in "abcdef"[: len(sizes)]]
        for model, size in zip(self.models, sizes, strict=True):
            model.bytes, model.state = size << 20, "unloaded"
        self.done, self.broken, self.gate = list[str](), set[str](), asyncio.Event()
        self.gate.set()
        self.residence = Residence(self.models, MEMORY, self._load, self._unload)
        self.admission = admission

    async def _load(self, model):
        await self.gate.wait()
        if model.name in self.broken:
            raise NotReady("its weights are damaged", param="model")
        self.done.append(f"+{model.name}")
        assert sum(other.bytes for other in self.models if other.state in ("loaded", "loading")) <= MEMORY

    async def _unload(self, model):
        assert not model.holders, "it has a request under way"
        self.done.append(f"-{model.name}")

    async def use(self, which):
        plan = made_plan()
        await self.residence.enter(self.models[which], plan)
        self.residence.leave(self.models[which], plan)


def made_plan(macs=1, in_background=False):
    key, specs = SimpleNamespace(name="anna"), [SimpleNamespace(key_seconds=None)]
    return SimpleNamespace(key=key, specs=specs, macs=macs, in_background=in_background)


def run(scene, **options):
    async def go():
        site = Site(**options)
        following = asyncio.create_task(site.residence.follow())
        try:
            await asyncio.wait_for(scene(site), 30)
        finally:
            following.cancel()

    asyncio.run(go())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_model_used_least_recently_makes_room():
    async def scene(site):
        for which in (0, 1, 0, 2, 1, 2, 0):
            await site.use(which)
        assert site.done == ["+a", "+b", "-b", "+c", "-a", "+b", "-b", "+a"]
        assert [model.state for model in site.models] == ["loaded", "unloaded", "loaded"]

    run(scene)


def test_all_that_fit_stay():
    async def scene(site):
        for which in (0, 1, 2, 1, 0):
            await site.use(which)
        assert site.done == ["+a", "+b", "+c"]

    run(scene, sizes=(5, 5, 10))


def test_a_model_with_a_request_under_way_is_not_unloaded_though_it_was_used_least_recently():
    async def scene(site):
        held = made_plan()
        await site.residence.enter(site.models[0], held)
        await site.use(1)
        await site.use(2)
        assert site.done == ["+a", "+b", "-b", "+c"]

    run(scene)


def test_where_all_are_needed_one_takes_in_no_more_and_goes_when_its_requests_are_done(monkeypatch):
    monkeypatch.setattr(residence, "STAY", 0.0)

    async def scene(site):
        held = [made_plan(), made_plan()]
        for model, plan in zip(site.models, held, strict=False):
            await site.residence.enter(model, plan)
        wanting = asyncio.create_task(site.use(2))
        await settle()
        late = asyncio.create_task(site.use(0))  # it would keep the model for ever
        await settle()
        assert (wanting.done(), late.done(), site.done) == (False, False, ["+a", "+b"])
        site.residence.leave(site.models[0], held[0])
        await wanting
        await late
        assert site.done == ["+a", "+b", "-a", "+c", "-c", "+a"]

    run(scene)


def test_a_model_in_demand_stays_as_long_as_its_load_is_worth():
    async def scene(site):
        held = [made_plan(), made_plan()]
        for model, plan in zip(site.models, held, strict=False):
            await site.residence.enter(model, plan)
            model.load_seconds = 100.0
        wanting = asyncio.create_task(site.use(2))
        await settle()
        await site.use(0)  # its time is not over: it takes in more
        assert not wanting.done()
        site.residence.leave(site.models[0], held[0])
        await wanting
        assert site.done == ["+a", "+b", "-a", "+c"]

    run(scene)


def test_requests_that_wait_for_a_load_count_for_the_queue_and_know_how_long_it_takes(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(residence, "monotonic", lambda: now)

    async def scene(site):
        nonlocal now
        await site.use(0)
        site.models[0].load_seconds = 5.0
        site.gate.clear()
        assert 0 < site.residence.seconds(site.models[1]) == pytest.approx(5.0)  # by the other's bytes
        waiting = asyncio.create_task(site.use(1))
        await settle()
        assert site.admission.seconds == 0, "its pace is not known yet"
        assert site.residence.seconds(site.models[1]) == pytest.approx(5.0)
        now += 1.0
        assert site.residence.seconds(site.models[1]) == pytest.approx(4.0)
        assert site.residence.seconds(site.models[2]) == pytest.approx(9.0), "it comes after the other"
        with pytest.raises(Overloaded, match=r"being loaded, for 9\.0 s more"):
            await site.residence.enter(site.models[2], made_plan())
        site.gate.set()
        await waiting
        assert site.residence.seconds(site.models[1]) == 0

    run(scene, max_seconds=8.0)


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("key_seconds", [None, 8.0])
def test_a_load_longer_than_the_bound_begins_where_it_waits_for_no_other_and_counts_from_then_on(in_background, key_seconds):
    async def scene(site):
        model = site.models[0]
        model.load_seconds = 75.0
        site.gate.clear()
        plans = [made_plan(in_background=in_background) for _ in range(2)]
        for plan in plans:
            plan.specs[0].key_seconds = key_seconds
        waiting = asyncio.create_task(site.residence.enter(model, plans[0]))
        await settle()
        assert model.state == "loading"
        with pytest.raises(Overloaded, match="the model is being loaded, for 7"):
            await site.residence.enter(model, plans[1])
        site.gate.set()
        await waiting
        await site.residence.enter(model, plans[1])
        assert site.done == ["+a"]

    run(scene, max_seconds=60.0 if key_seconds is None else 600.0)


def test_a_load_longer_than_the_bound_begins_though_another_model_has_work():
    async def scene(site):
        await site.use(0)
        site.admission.enter("bert", 50)
        site.models[1].load_seconds = 75.0
        await site.use(1)
        assert site.done == ["+a", "+b"]

    run(scene, max_seconds=60.0)


def test_who_gives_up_waiting_owes_nothing_and_the_load_goes_on():
    async def scene(site):
        site.gate.clear()
        waiting = asyncio.create_task(site.use(0))
        await settle()
        waiting.cancel()
        await settle()
        assert site.admission.seconds == 0
        site.gate.set()
        await settle()
        assert site.models[0].state == "loaded"
        assert not site.models[0].holders

    run(scene)


def test_a_model_that_cannot_be_loaded_says_why_takes_nobody_with_it_and_is_tried_again(monkeypatch):
    async def scene(site):
        site.broken.add("b")
        await site.use(0)
        for _ in range(2):
            with pytest.raises(NotReady, match=r"the model b cannot be served: .*its weights are damaged"):
                await site.use(1)
        assert (site.models[1].state, site.models[0].state) == ("failed", "loaded")
        await site.use(0)
        site.broken.clear()
        with pytest.raises(NotReady):
            await site.use(1)
        monkeypatch.setattr(residence, "RETRY", 0.0)
        await site.use(1)
        assert site.done == ["+a", "+b"]

    run(scene)


def test_a_fault_of_any_kind_is_of_the_model_that_was_wanted_and_others_are_loaded_later(caplog):
    async def scene(site):
        async def unload(model):
            raise RuntimeError("the device is gone")

        plain, site.residence._unload = site.residence._unload, unload
        await site.use(0)
        await site.use(1)
        with pytest.raises(NotReady, match="the model c cannot be served: RuntimeError: the device is gone"):
            await site.use(2)
        site.residence._unload = plain
        await site.use(0)
        assert site.models[0].state == "loaded"

    run(scene)
    assert "Traceback" in caplog.text


def test_a_model_larger_than_the_memory_is_refused_naming_the_limit():
    async def scene(site):
        with pytest.raises(NotReady, match="it takes 30 MiB, and FLEXI_MODELS_MIB allows 20"):
            await site.use(1)
        await site.use(0)

    run(scene, sizes=(10, 30))


def test_where_memory_is_short_all_the_same_another_model_goes():
    async def scene(site):
        await site.use(0)
        plain, breakages = site._load, [MemoryError()]

        async def load(model):
            if breakages:
                raise breakages.pop()
            await plain(model)

        site.residence._load = load
        await site.use(1)
        assert site.done == ["+a", "-a", "+b"]

    run(scene)


def test_background_work_has_no_model_unloaded_that_clients_use(monkeypatch):
    monkeypatch.setattr(residence, "STAY", 0.0)

    async def scene(site):
        held = [made_plan(), made_plan()]
        for model, plan in zip(site.models, held, strict=False):
            await site.residence.enter(model, plan)
        job = made_plan(in_background=True)
        waiting = asyncio.create_task(site.residence.enter(site.models[2], job))
        await settle()
        await site.use(0)
        assert site.done == ["+a", "+b"]
        for model, plan in zip(site.models, held, strict=False):
            site.residence.leave(model, plan)
        await waiting
        assert site.done == ["+a", "+b", "-b", "+c"]

    run(scene)


def test_background_work_that_waits_for_a_load_is_no_clients_work():
    async def scene(site):
        site.gate.clear()
        waiting = asyncio.create_task(site.residence.enter(site.models[0], made_plan(5, in_background=True)))
        await settle()
        assert (site.admission.seconds, site.admission.background_seconds) == (
            0.0,
            5 * site.models[0].admission.seconds_per_mac,
        )
        site.gate.set()
        await waiting
        assert site.admission.background_seconds == 0.0

    run(scene)
