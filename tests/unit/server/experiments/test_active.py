"""What a server does with experiments: follows them, assigns requests, holds arms to guardrails, and tells the registry."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import torch
from memory_store import MemoryStore
from PIL import Image
from server_model import small_model

from registry.catalog import Catalog
from registry.errors import StoreUnavailable
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Arm, Experiment, Guardrail, Primary, RampStage
from registry.schedule import Schedule, Segment
from registry.writer import Writer
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.batching.image_task import ImageResult
from server.experiments.active import ActiveExperiments
from server.experiments.assign import arm_of, hashed_unit
from server.experiments.events import read, write
from server.experiments.guardrails import guardrail_values
from server.experiments.runtime import ExperimentRuntime
from server.loras.adapter_set import AdapterSet, LoraUse
from server.request_fields import LoraWish
from server.requests.context import RequestContext
from server.requests.lora_choice import LoraChoice
from server.requests.planner import Planner
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Store(MemoryStore):
    read_only = False

    def swap(self, key, data, etag):
        if self.read_only:
            raise StoreUnavailable("access denied")
        return super().swap(key, data, etag)


class Recorder(list):
    def record(self, stream, event):
        self.append((stream, event))


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", 2.0


class Site:
    def __init__(self, model):
        self.store = Store()
        self.catalog = Catalog(self.store, model.ref.name, author="test")
        self.digests = {}
        for name, segments in {"fast": 2, "cheap": 1}.items():
            schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * segments)
            self.catalog.publish(schedule)
            self.digests[name] = schedule.digest
        self.catalog.promote("fast", self.digests["fast"])
        self.model, self.schedules = model, ActiveSchedules(lambda: self.catalog, model, 4)
        self.watch = Watch(self.schedules, lambda: self.catalog)
        self.watch.refresh()
        self.recorder, self.now = Recorder(), NOW
        self.experiments = ExperimentCatalog(self.store, model.ref.name, Writer.here(clock=lambda: self.now))
        self.active = ActiveExperiments(lambda: self.experiments, self.schedules, clock=lambda: self.now)
        self.runtime = ExperimentRuntime(self.active, self.recorder, lambda: self.experiments, clock=lambda: self.now)
        self.planner = Planner(self.schedules, self.active, model, lambda *_: 0.0, Settings())

    def declaration(self, name, **fields):
        arms = (
            Arm(name="control", digest=self.digests["fast"], weight=1),
            Arm(name="cheap", digest=fields.pop("cheap", self.digests["cheap"]), weight=1),
        )
        return Experiment(
            **{
                "name": name, "version": 1, "hypothesis": "h", "tier": "fast", "arms": arms, "control": "control", "salt": name,
                "ramp": (RampStage(share=100),), "primary": Primary(metric="macs", minimal_effect=0.05), "maximum_units": 1000,
                "end": NOW + timedelta(days=1),
            } | fields
        )  # fmt: skip

    def start(self, name="x", **fields):
        experiment = self.declaration(name, **fields)
        self.experiments.declare(experiment)
        self.experiments.act(name, "start")
        self.runtime.refresh()
        return experiment

    def plan(self, request_id="id", **fields):
        return asyncio.run(self.planner.plan(GenerateRequest(prompt="a", **fields), request_id, ANONYMOUS))

    def end(self, plan, outcome="ok", steps=None, seconds=2.0):
        black, counts = torch.zeros(8, 8, 3, dtype=torch.uint8), steps or Counter(plan.specs[0].program.counts)
        result = ImageResult(black, plan.macs, counts, 0.5, 1.0)
        context = RequestContext(plan.request_id, plan=plan, code=outcome, results={0: result} if outcome == "ok" else {})
        self.runtime.ended(context, plan, seconds)


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def site(model):
    return Site(model)


def test_an_enrolled_unit_gets_its_arm_and_the_tier_keeps_its_name(site):
    experiment = site.start()
    for unit in map(str, range(20)):
        plan, arm = site.plan(unit=unit), arm_of(experiment, unit)
        assert (plan.entry.digest, plan.entry.tier, plan.specs[0].arm) == (arm.digest, "fast", arm.name)
        assert plan.assignment.arm == arm.name
        assert plan.entry.relative_cost == {"control": 0.5, "cheap": 0.25}[arm.name]


def test_an_arms_cost_is_relative_to_the_teacher_in_force_as_its_tiers_is(site):
    experiment = site.start()
    arms = {arm_of(experiment, unit).name: unit for unit in map(str, range(20))}
    longer = Schedule(model=site.model.ref, solver=site.model.solver("ddim", 8), segments=(Segment(),) * 8)
    site.catalog.promote("reference", site.catalog.publish(longer).number)
    site.watch.refresh()
    site.runtime.refresh()
    teacher, plans = site.plan(tier="reference"), {arm: site.plan(unit=unit) for arm, unit in arms.items()}
    assert {arm: plan.relative_cost for arm, plan in plans.items()} == {"control": 0.25, "cheap": 0.125}
    assert {plan.specs[0].teacher_macs for plan in plans.values()} == {teacher.macs}
    assert site.plan(priority="background").relative_cost == 0.25, "the tier's own schedule, which control has too"


def test_without_a_unit_nobody_is_enrolled_unless_requests_are_the_units(site):
    site.start()
    plan = site.plan()
    assert (plan.assignment.enrolment, plan.entry.digest) == ("no_unit", site.digests["fast"])
    site.experiments.act("x", "stop")
    experiment = site.start("y", unit="request")
    for request_id in map(str, range(10)):
        assert site.plan(request_id).assignment.arm == arm_of(experiment, request_id).name


def test_an_explicit_schedule_bypasses_and_is_recorded_as_such(site):
    site.start()
    plan = site.plan(schedule=site.digests["cheap"], unit="u")
    assert (plan.assignment.enrolment, plan.entry.tier, plan.assignment.arm) == ("bypass", None, None)
    site.end(plan)
    ((stream, event),) = site.recorder
    assert (stream, event.enrolment, event.unit) == ("experiments/x/events", "bypass", None)


def test_background_work_is_in_no_experiment(site):
    experiment = site.start()
    units = [str(i) for i in range(20)]
    assert {arm_of(experiment, unit).name for unit in units} == {"control", "cheap"}
    for unit in units:
        plan = site.plan(unit=unit, priority="background")
        assert (plan.assignment, plan.entry.digest) == (None, site.digests["fast"])
    plan = site.plan(unit="u", priority="background", schedule=site.digests["cheap"])
    assert (plan.assignment, plan.entry.digest) == (None, site.digests["cheap"]), "it bypasses nothing either"
    site.end(plan)
    assert site.recorder == []


def test_the_event_of_a_request(site):
    site.start()
    plan = site.plan(unit="u")
    site.end(plan)
    ((_, event),) = site.recorder
    assert (event.time, event.outcome, event.queue_seconds, event.service_seconds) == (NOW, "ok", 0.5, 1.5)
    assert event.macs_planned == event.macs_executed == plan.macs
    assert event.steps_planned == event.steps_executed == len(plan.entry.program.steps)
    assert event.unit == hashed_unit("x", "u")
    site.end(site.plan(unit="u", num_images=3))
    site.end(site.plan(unit="u", num_images=3, guidance_scale=1.0))
    assert [event.unet_rows for _, event in site.recorder] == [2, 6, 3]


def test_an_edit_that_runs_a_part_of_its_schedule_has_no_unplanned_steps(site):
    experiment = site.start()
    unit = next(unit for unit in map(str, range(20)) if arm_of(experiment, unit).name == "control")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    plan = site.plan(unit=unit, image=base64.b64encode(file.getvalue()).decode(), strength=0.3)
    assert len(plan.specs[0].program.steps) < len(plan.entry.program.steps)
    site.end(plan)
    ((_, event),) = site.recorder
    assert event.steps_planned == event.steps_executed
    assert guardrail_values(event)["unplanned_steps"] == 0


def test_loras_move_no_unit_to_another_arm_and_are_in_its_event(site):
    site.start()
    asked = AdapterSet.of([LoraUse("style", "0" * 64, 0.5), LoraUse("ink", "1" * 64, 1.0)], 1)
    site.planner._loras = LoraChoice(SimpleNamespace(chosen=lambda wishes: asked))
    for unit in map(str, range(10)):
        plain, styled = (site.plan(unit=unit, loras=loras) for loras in ([], [LoraWish(name="style")]))
        assert (plain.arm, plain.entry.digest) == (styled.arm, styled.entry.digest)
    site.end(plain)
    site.end(styled)
    without, event = (event for _, event in site.recorder)
    assert event.loras == ("ink:1", "style:0.5")
    assert b"loras" not in write([without]), "events without any are as they ever were"
    assert list(read("key", write([without, event]))) == [without, event]


def test_a_pause_an_end_and_a_kill_give_the_traffic_back(site):
    site.start()
    for action in ("pause", "start", "kill"):
        site.experiments.act("x", action)
        site.runtime.refresh()
        assert bool(site.active.running()) == (action == "start")
    site.start("y")
    site.now += timedelta(days=2)
    assert site.plan(unit="u").assignment is None, "by the clock, whether or not the registry takes the report"
    site.runtime.refresh()
    assert site.experiments.state("y").status == "finished"


def test_a_unit_of_an_arm_that_cannot_be_loaded_stays_in_it_and_is_served_by_the_tier(site, caplog):
    site.start(cheap="0" * 64, guardrails=(RAIL,))
    site.runtime.refresh()
    assert [message for message in caplog.messages if "arm cheap falls back" in message] == caplog.messages, "said once"
    harm(site)
    assert site.active.running(), "no arm is to blame for what the tier's own schedule did"
    events = [event for _, event in site.recorder]
    assert len(events) == 60
    assert {event.digest for event in events} == {site.digests["fast"]}
    assert {(event.arm, event.fallback) for event in events} == {("control", False), ("cheap", True)}


def test_an_arm_that_can_be_loaded_later_is_served_from_then_on(site):
    late = Schedule(model=site.model.ref, solver=site.model.solver("ddim", 8), segments=(Segment(),) * 2)
    experiment = site.start(cheap=late.digest)
    unit = next(unit for unit in map(str, range(100)) if arm_of(experiment, unit).name == "cheap")
    assert site.plan(unit=unit).assignment.fallback
    site.catalog.publish(late)
    site.runtime.refresh()
    plan = site.plan(unit=unit)
    assert (plan.assignment.fallback, plan.entry.digest) == (False, late.digest)


def test_a_fault_of_an_experiment_is_said_once_and_so_is_its_end(site, caplog):
    caplog.set_level(logging.INFO, "server.experiments.active")
    site.start(cheap="0" * 64)
    site.runtime.refresh()
    site.experiments.act("x", "pause")
    for _ in range(2):
        site.runtime.refresh()
    said, ended = caplog.messages
    assert said.startswith("the experiment x runs, but its arm cheap falls back")
    assert ended == f"no longer: {said}"


def test_who_holds_one_tier_is_damaged_and_all_others_go_on(site, caplog):
    experiment = site.start()
    key = f"{site.experiments.model}/holds/fast.json"
    before = site.store.get(key)
    site.store.swap(key, b"{", before.etag)
    site.catalog.promote("other", site.digests["cheap"])
    site.start("y", tier="other")
    assert {active.experiment.name for active in site.active.running()} == {experiment.name, "y"}
    assert any("which experiment holds tier fast cannot be read" in message for message in caplog.messages)
    site.store.swap(key, before.data, site.store.get(key).etag)
    site.experiments.act("x", "stop")
    site.runtime.refresh()
    assert [active.experiment.name for active in site.active.running()] == ["y"]


@pytest.mark.parametrize(("seconds", "tier"), [({1: 3.0, 2: 1.5}, "fast"), ({1: 1.0, 2: 3.0}, "draft")], ids=["fast", "draft"])
def test_whom_auto_enrols_does_not_depend_on_the_arm(site, seconds, tier):
    """The tier is chosen by its own schedule of two steps, whether or not the arm of one step would keep the deadline."""
    experiment = site.start()
    site.planner = Planner(site.schedules, site.active, site.model, lambda program, *_: seconds[len(program.steps)], Settings())
    site.catalog.promote("draft", site.digests["cheap"])
    site.watch.refresh()
    arms = set()
    for unit in map(str, range(20)):
        plan = site.plan(unit=unit, tier="auto", deadline_ms=2000)
        assert plan.entry.tier == tier
        assert plan.predicted == seconds[len(plan.entry.program.steps)], "of what serves"
        arms.add(plan.assignment and plan.assignment.arm)
        assert plan.assignment is None or plan.assignment.arm == arm_of(experiment, unit).name
    assert arms == ({"control", "cheap"} if tier == "fast" else {None})


RAIL = Guardrail(metric="errors", compare="difference", limit=0.2, minimum_sample=10, consecutive=1)


def harm(site):
    for unit in map(str, range(60)):
        plan = site.plan(f"r{unit}", unit=unit)
        if plan.assignment is None:
            return
        site.end(plan, "generation_failed" if plan.assignment.arm == "cheap" else "ok")


def test_harm_ends_the_experiment_here_at_once_and_then_everywhere(site):
    site.start(guardrails=(RAIL,))
    harm(site)
    assert site.active.running() == [], "before the registry has the report"
    assert site.experiments.state("x").status == "running"
    site.runtime.refresh()
    newest = site.experiments.state("x").history[-1]
    assert (newest.action, newest.evidence["arm"], newest.evidence["metric"]) == ("roll_back", "cheap", "errors")
    assert "cheap" in newest.reason


def test_a_roll_back_is_reported_until_the_store_takes_it(site, caplog):
    caplog.set_level(logging.INFO, "server.experiments.end_reporter")
    site.start(guardrails=(RAIL,))
    site.store.read_only = True
    harm(site)
    for _ in range(2):
        site.runtime.refresh()
        assert site.active.running() == []
        assert unreported() == 1
    assert site.experiments.state("x").status == "running"
    assert [message for message in caplog.messages if "access denied" in message] == [caplog.messages[-1]], "said once"
    site.store.read_only = False
    site.runtime.refresh()
    assert site.experiments.state("x").status == "rolled_back"
    assert unreported() == 0
    assert "no longer: the registry does not know yet: could not roll_back" in caplog.messages[-1]


def test_a_server_that_cannot_write_follows_all_the_same(site):
    site.start(guardrails=(RAIL,))
    site.catalog.promote("other", site.digests["fast"])
    site.watch.refresh()
    site.store.read_only = True
    harm(site)
    site.runtime.refresh()
    site.store.read_only = False
    site.experiments.declare(site.declaration("y", tier="other"))
    site.experiments.act("y", "start")
    site.store.read_only = True
    site.runtime.refresh()
    assert [active.experiment.name for active in site.active.running()] == ["y"]
    assert unreported() == 1


def test_a_roll_back_that_another_server_was_first_with_is_reported_no_more(site):
    site.start(guardrails=(RAIL,))
    site.store.read_only = True
    harm(site)
    site.runtime.refresh()
    site.store.read_only = False
    site.experiments.act("x", "kill")
    site.runtime.refresh()
    assert unreported() == 0
    assert site.experiments.state("x").status == "killed"


def test_an_arm_that_nobody_waits_for_is_rolled_back(site):
    slow = Guardrail(metric="service_p95", compare="ratio", limit=1.5, minimum_sample=10, consecutive=1)
    site.start(guardrails=(slow,))
    for unit in map(str, range(60)):
        plan = site.plan(f"r{unit}", unit=unit)
        if plan.assignment is None:
            break
        site.end(
            plan,
            "client_gone" if plan.assignment.arm == "cheap" else "ok",
            seconds=10.0 if plan.assignment.arm == "cheap" else 2.0,
        )
    assert site.active.running() == []


def test_a_guardrail_of_fidelity_that_can_see_nothing_is_said(site, caplog):
    site.runtime = ExperimentRuntime(site.active, site.recorder, lambda: site.experiments, lambda: site.now, shadowed=False)
    site.start(guardrails=(Guardrail(metric="psnr", compare="difference", limit=3.0),))
    site.runtime.refresh()
    assert [message for message in caplog.messages if "FLEXI_SHADOW_SHARE" in message] == caplog.messages, "once"


def unreported():
    return metrics.rollbacks_unreported._value.get()


def test_steps_that_were_not_planned_trip(site):
    site.start(guardrails=(Guardrail(metric="unplanned_steps", compare="value", limit=0.1, minimum_sample=10, consecutive=1),))
    for unit in map(str, range(60)):
        plan = site.plan(f"r{unit}", unit=unit)
        if plan.assignment is None:
            break
        site.end(plan, steps=Counter(full=3) if plan.assignment.arm == "cheap" else None)
    assert site.active.running() == []
