"""Which guidance scale a request gets that names none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from memory_store import MemoryStore
from server_model import small_model

from registry.catalog import Catalog
from registry.schedule import Schedule, Segment, Validated
from server.models.loading import teacher_steps
from server.tiers.active import ActiveSchedules
from server.tiers.guidance import DefaultGuidance
from server.tiers.watch import Watch

SEGMENTS = {"draft": 1, "balanced": 2, "best": 3}


@pytest.fixture(scope="module")
def model(tiny):
    torch.set_num_threads(1)
    return small_model(tiny)


def defaults(model, scales, wanted=None, default_tier="balanced"):
    """{tier: scale}, and the line of the start; `scales`: those at which each tier was validated."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for tier, validated in scales.items():
        schedule = Schedule(model=model.ref, solver=model.solver("ddim", 6), segments=(Segment(),) * SEGMENTS[tier])
        if validated:
            schedule = schedule.model_copy(update={"validated": Validated(sizes=(model.image_size,), guidance=validated)})
        catalog.publish(schedule)
        catalog.promote(tier, schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 6)
    assert Watch(schedules, lambda: catalog).refresh()
    guidance = DefaultGuidance(schedules, model, wanted, default_tier)
    return {tier.tier: guidance.of(tier) for tier in schedules.tiers()}, guidance.overruled()


def test_a_tier_has_the_scale_that_it_was_validated_at_and_the_teacher_that_of_the_default_tier(model):
    scales, said = defaults(model, {"balanced": (7.5,), "best": (5.0,), "draft": ()})
    assert scales == {"balanced": 7.5, "best": 5.0, "draft": 7.5, "reference": 7.5}
    assert said is None, "nothing was set that could be overruled"


def test_without_the_default_tier_the_dearest_that_says_one_gives_the_scale(model):
    assert defaults(model, {"draft": (2.0,), "best": (5.0,)})[0]["reference"] == 5.0
    assert defaults(model, {"draft": (2.0,), "best": ()})[0]["reference"] == 2.0
    assert defaults(model, {"balanced": (), "best": (5.0,)})[0]["reference"] == 3.0, "it is there, and says none"
    assert defaults(model, {"draft": (), "best": ()})[0] == {"draft": 3.0, "best": 3.0, "reference": 3.0}
    assert defaults(model, {})[0] == {"reference": 3.0}


@pytest.mark.parametrize(
    ("validated", "wanted", "scale"),
    [((3.0, 7.5), 7.5, 7.5), ((3.0, 7.5), 5.0, 3.0), ((7.5, 3.0), 6.0, 7.5), ((3.0, 5.0), 4.0, 3.0), ((5.0, 9.0), None, 5.0)],
)
def test_of_several_scales_the_one_nearest_to_what_is_set(model, validated, wanted, scale):
    assert defaults(model, {"balanced": validated}, wanted)[0]["balanced"] == scale


def test_what_is_set_is_for_schedules_that_say_none_and_the_start_says_whom_it_does_not_reach(model):
    scales, said = defaults(model, {"balanced": (7.5,), "draft": ()}, wanted=5.0)
    assert scales == {"balanced": 7.5, "draft": 5.0, "reference": 5.0}
    assert said == ("FLEXI_DEFAULT_GUIDANCE is 5, and tiers that were validated elsewhere keep their own scale: balanced 7.5")
    assert defaults(model, {"balanced": (7.5,)}, wanted=7.5)[1] is None


def test_scales_that_no_request_may_ask_for_count_as_none(model):
    assert defaults(model, {"balanced": (1000.0,), "best": (-1.0,)})[0] == {"balanced": 3.0, "best": 3.0, "reference": 3.0}
    assert defaults(model, {"balanced": (0.0,)})[0] == {"balanced": 1.0, "reference": 1.0}


def test_a_distilled_model_is_not_guided_unless_it_was_validated_so_or_somebody_sets_it(model):
    distilled = replace(model, few_steps=4, usual_guidance=1.0)
    assert defaults(distilled, {})[0] == {"reference": 1.0}
    assert defaults(distilled, {"best": (1.5,)})[0] == {"best": 1.5, "reference": 1.0}
    assert defaults(distilled, {}, wanted=2.0)[0] == {"reference": 2.0}


def test_the_teacher_that_is_made_up_has_a_distilled_models_steps_and_solver_and_another_wish_is_said(model, caplog):
    class Settings:
        teacher_steps = None

    distilled = replace(model, few_steps=4, own_solver="euler")
    assert (teacher_steps(Settings, model), teacher_steps(Settings, distilled), caplog.messages) == (50, 4, [])
    for one, solver in ((model, "ddim"), (distilled, "euler")):
        (reference,) = ActiveSchedules(lambda: None, one, 4).tiers()
        assert (reference.schedule.solver.name, reference.schedule.computed) == (solver, 4)
    Settings.teacher_steps = 50
    assert (teacher_steps(Settings, model), teacher_steps(Settings, distilled)) == (50, 50)
    assert caplog.messages == [
        "FLEXI_TEACHER_STEPS is 50, and the model was distilled to 4: `reference` is not the model as it was meant"
    ]


def test_a_model_without_guidance_has_none_whatever_is_set(model):
    unguided = replace(model, prompts=replace(model.prompts, guides=False))
    assert defaults(unguided, {"best": (7.5,)}, wanted=5.0) == (
        {"best": 1.0, "reference": 1.0},
        "FLEXI_DEFAULT_GUIDANCE is 5, and the model has no guidance: it has no effect",
    )
