"""The size that a request asks for: one of those that there are, billed as it runs, and told where nothing was measured."""

from __future__ import annotations

import asyncio

import pytest
from memory_store import MemoryStore
from server_model import small_model

from engine.image_size import ImageSize
from registry.catalog import Catalog
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment, Validated
from registry.tiers import REFERENCE
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.experiments.active import ActiveExperiments
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

OWN, WIDE, LARGE = ImageSize(8, 8), ImageSize(8, 16), ImageSize(16, 16)
TIERS = {"draft": (), "balanced": (OWN,), "best": (WIDE, OWN), "elsewhere": (ImageSize(64, 64),)}


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "balanced", None


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


def planning(model, others=(WIDE, LARGE)):
    """A planner whose registry has these tiers: {name: the sizes at which it was measured}. Seconds are pixels."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for i, (tier, sizes) in enumerate(TIERS.items()):
        segments = (Segment(partial=(1,), branch=1 + i), Segment())
        schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)
        if sizes:
            schedule = schedule.model_copy(update={"validated": Validated(sizes=sizes, guidance=(3.0,))})
        catalog.publish(schedule)
        catalog.promote(tier, schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 4, others)
    Watch(schedules, lambda: catalog).refresh()

    def forecast(program, unet_rows, images, tier, size, chunks):
        return float((size or OWN).pixels)

    return Planner(schedules, ActiveExperiments(lambda: None, schedules), model, forecast, Settings(), others), schedules


@pytest.fixture(scope="module")
def planner(model):
    return planning(model)[0]


def planned(planner, **fields):
    return asyncio.run(planner.plan(GenerateRequest(prompt="x", **fields), "id-1", ANONYMOUS))


def unmeasured(plan):
    return [warning.message for warning in plan.warnings if warning.code == "size_not_validated"]


@pytest.mark.parametrize("size", [None, "auto", "8x8"])
def test_a_request_that_says_none_gets_the_models_own(planner, size):
    plan = planned(planner, size=size)
    assert (plan.size, plan.specs[0].size, unmeasured(plan)) == (OWN, None, [])


def test_a_size_is_planned_billed_and_predicted_as_it_runs(model, planner):
    own, wide = planned(planner, tier="best"), planned(planner, tier="best", size="16x8", num_images=2)
    assert (wide.size, wide.specs[0].size) == (WIDE, WIDE)
    macs = model.macs_at(WIDE)
    one = macs.of_program(wide.entry.program, 2)
    teacher = macs.of_program(planned(planner, tier=REFERENCE).entry.program, 2)
    assert wide.macs == 2 * one != 2 * own.macs
    assert wide.relative_cost == one / teacher
    assert wide.specs[0].teacher_macs == teacher, "the shadow's budget too"
    assert (own.predicted, wide.predicted) == (64, 128)


@pytest.mark.parametrize("size", ["8x16", "1024x1024", "16 x 8", "wide", "0x0"])
def test_any_other_size_is_refused_with_those_that_there_are(planner, size):
    with pytest.raises(InvalidInput) as caught:
        planned(planner, size=size)
    assert caught.value.message == "size: this server makes 8x8, 16x8, 16x16: leave size out, or say auto"


def test_a_server_without_other_sizes_makes_the_models_own_only(model):
    alone, schedules = planning(model, ())
    with pytest.raises(InvalidInput, match="this server makes 8x8 only"):
        planned(alone, size="16x8")
    assert "the schedule was measured at 64x64, this server makes 8x8" in schedules.refused["elsewhere"]


def test_a_size_at_which_the_schedule_was_not_measured_is_said(planner):
    assert unmeasured(planned(planner, tier="best", size="16x8")) == []
    assert unmeasured(planned(planner, tier="best", size="16x16")) == [
        "size: the schedule was measured at 16x8, 8x8 and not at 16x16: its images may be worse than its figures say"
    ]
    for tier in ("draft", "balanced"):  # a document that says none was measured at the model's own
        assert len(unmeasured(planned(planner, tier=tier, size="16x8"))) == 1
    assert unmeasured(planned(planner, tier=REFERENCE, size="16x8")) == [], "the teacher is itself at any size"
