"""What a request with an image asks for: at which size, where it is painted, how much of it runs, and what is said of it."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
import pytest
import torch
from memory_store import MemoryStore
from PIL import Image
from server_model import small_model

from engine.image_size import ImageSize
from registry.catalog import Catalog
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from registry.tiers import REFERENCE
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.experiments.active import ActiveExperiments
from server.requests.idle_images import shadow_of
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

OWN, WIDE, LARGE = ImageSize(8, 8), ImageSize(8, 16), ImageSize(16, 16)
STEPS = 10


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "balanced", None


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture(scope="module")
def planner(model):
    """Seconds are steps."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for tier, branch in (("draft", 1), ("balanced", 2)):
        segments = (Segment(partial=(2,), branch=branch),) * 2
        catalog.publish(schedule := Schedule(model=model.ref, solver=model.solver("ddim", STEPS), segments=segments))
        catalog.promote(tier, schedule.digest)
    others = (WIDE, LARGE)
    schedules = ActiveSchedules(lambda: catalog, model, STEPS, others)
    Watch(schedules, lambda: catalog).refresh()
    active = ActiveExperiments(lambda: None, schedules)
    return Planner(schedules, active, model, lambda program, *_: float(len(program.steps)), Settings(), others)


def written(levels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3))


def planned(planner, **fields):
    request = GenerateRequest(**{"prompt": "x", "image": written(picture(8, 8))} | fields)
    return asyncio.run(planner.plan(request, "id-1", ANONYMOUS))


def refused(planner, **fields) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        planned(planner, **fields)
    return error.value


@pytest.mark.parametrize(("strength", "ran"), [(None, 8), (0.3, 3), (0.59, 5), (1.0, 10), (0.01, 1)])
def test_the_share_of_the_steps_that_run_is_planned_billed_and_predicted(planner, model, strength, ran):
    plan = planned(planner, tier=REFERENCE, strength=strength, num_images=2)
    (first, second) = plan.specs
    assert len(first.program.steps) == ran == plan.predicted
    assert plan.macs == 2 * model.macs.of_program(first.program, first.unet_rows)
    assert plan.relative_cost == 1.0
    assert first.edit is second.edit
    assert [warning.code for warning in plan.warnings] == (["one_step_runs"] if strength == 0.01 else [])


def test_cost_is_relative_to_the_teachers_of_the_same_start_and_the_shadow_makes_that(planner, model):
    plan, teacher = planned(planner, strength=0.5), planned(planner, tier=REFERENCE, strength=0.5)
    assert plan.relative_cost == pytest.approx(plan.macs / teacher.macs)
    again = shadow_of(plan.specs[0], teacher.entry)
    assert again.program == teacher.specs[0].program
    assert again.edit is plan.specs[0].edit


def test_auto_predicts_what_runs(planner):
    assert planned(planner, tier="auto", deadline_ms=1500, strength=0.1).entry.tier == "balanced"
    assert planned(planner, tier="auto", deadline_ms=1500).warnings[0].code == "deadline_at_risk"


@pytest.mark.parametrize(
    ("came", "asked", "size", "said"),
    [
        ((8, 8), None, OWN, []),
        ((80, 80), "auto", LARGE, []),
        ((30, 15), None, WIDE, []),
        ((8, 30), None, LARGE, ["aspect_changed"]),
        ((8, 8), "16x8", WIDE, ["aspect_changed"]),
        ((32, 16), "16x8", WIDE, []),
    ],
)
def test_it_gets_the_size_asked_for_or_the_nearest_and_is_told_where_that_stretches_it(planner, came, asked, size, said):
    plan = planned(planner, image=written(picture(*came)), size=asked)
    assert (plan.size, plan.specs[0].edit.size) == (size, size)
    assert plan.specs[0].size == (None if size == OWN else size)
    assert [warning.code for warning in plan.warnings if warning.code != "size_not_validated"] == said


def test_white_and_transparent_are_painted_and_the_rest_stays(planner):
    white = np.zeros((8, 8))
    white[:, 4:] = 255
    alpha = np.dstack([picture(8, 8), 255 - white])
    whole = planned(planner).specs[0]
    assert (whole.keeps, whole.edit.source.painted) == (False, None)
    for fields in (
        {"mask": written(white)},
        {"mask": written(alpha)},
        {"image": written(alpha)},
        {"image": written(np.dstack([picture(8, 8), np.full((8, 8), 0)])), "mask": written(white)},
    ):
        plan = planned(planner, **fields)
        (spec,) = plan.specs
        assert spec.keeps
        assert torch.equal(spec.edit.source.painted, torch.from_numpy(white > 0))
        assert spec.edit.strength == 1.0
        assert spec.program is plan.entry.program, "what is painted with all strength begins at pure noise"
        assert torch.equal(spec.edit.source.pixels, torch.from_numpy(picture(8, 8).astype(np.uint8)))


def test_what_is_kept_of_an_encoded_image_is_found_by_its_content_and_size(planner):
    first, again = planned(planner, seed=1).specs[0].edit, planned(planner, seed=2, strength=0.3, tier="draft").specs[0].edit
    assert (first.image_key, first.key) == (again.image_key, again.key)
    masked = planned(planner, mask=written(np.full((8, 8), 255))).specs[0].edit
    assert masked.image_key == first.image_key
    assert masked.key != first.key
    others = [planned(planner, size="16x16"), planned(planner, image=written(picture(8, 9)))]
    assert len({first.image_key, *(plan.specs[0].edit.image_key for plan in others)}) == 3


def test_bad_images_and_masks_are_refused_by_name(planner):
    assert refused(planner, image="####").param == "image"
    assert refused(planner, mask="####").param == "mask"
    wrong = refused(planner, mask=written(np.full((8, 9), 255)))
    assert wrong.message == "mask: must be as large as the image, 8x8, got 9x8"
    assert refused(planner, mask=written(np.zeros((8, 8)))).param == "mask"
    assert refused(planner, size="24x24").param == "size"


@pytest.mark.parametrize(
    "fields", [{"mask": "A"}, {"strength": 0.5}, {"image": "A", "strength": 0}, {"image": "A", "strength": 1.1}]
)
def test_a_mask_or_a_strength_goes_with_an_image_and_a_strength_is_a_share(fields):
    with pytest.raises(ValueError, match=r"mask|strength"):
        GenerateRequest(prompt="x", **fields)
    assert GenerateRequest(prompt="x", mask="", strength=None).mask is None
