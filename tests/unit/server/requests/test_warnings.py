"""Wishes that are not met: each is said, in the answer, in the file where it is about the image, in the log and in a metric."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import model_folders
import pytest
import torch
from memory_store import MemoryStore
from PIL import Image
from server_model import small_model

from engine.loading import load
from engine.notice import Notice
from registry.catalog import Catalog
from registry.corrections import Correction, ScaledCorrections
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment, Validated
from registry.tiers import REFERENCE
from server.access.keys import ANONYMOUS
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.image_task import ImageResult, ImageTask, preview_places
from server.experiments.active import ActiveExperiments
from server.requests.assignment import Assigner, Assignment
from server.requests.context import RequestContext
from server.requests.generation import Generation
from server.requests.planner import Planner
from server.requests.prompt_pair import LONG
from server.requests.warnings import SHOWN, of_the_image
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

STEPS = 4
SEGMENTS = {"draft": 1, "balanced": 2, "best": 4}
LONG_TEXT = " ".join(f"word{i}" for i in range(12))  # of which the model reads ten


@pytest.fixture(scope="module")
def model(tiny):
    torch.set_num_threads(1)
    return small_model(tiny)


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "balanced", None


def schedule(model, segments, validated=()):
    bare = Schedule(model=model.ref, solver=model.solver("dpmsolver++", STEPS), segments=(Segment(),) * segments)
    where = Validated(sizes=(model.image_size,), guidance=validated)
    return bare.model_copy(update={"validated": where}) if validated else bare


def planning(model, tiers, forecast=lambda *_: 0.0, assigner=None, settings=Settings):
    """A planner whose registry has these tiers: {name: the scales at which it was validated}."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for tier, validated in tiers.items():
        published = schedule(model, SEGMENTS[tier], validated)
        catalog.publish(published)
        catalog.promote(tier, published.digest)
    schedules = ActiveSchedules(lambda: catalog, model, STEPS)
    assert Watch(schedules, lambda: catalog).refresh()
    return Planner(schedules, assigner or ActiveExperiments(lambda: None, schedules), model, forecast, settings())


def planned(planner, previews=0, **fields):
    request = GenerateRequest(**{"prompt": "x"} | fields)
    return asyncio.run(planner.plan(request, "id-1", ANONYMOUS, previews=previews))


def codes(plan):
    return [warning.code for warning in plan.warnings]


@pytest.fixture(scope="module")
def planner(model):
    return planning(model, {"draft": (), "balanced": (3.0, 7.5), "best": (5.0,)})


def test_nothing_is_said_of_a_request_that_gets_what_it_asks_for(planner):
    for tier in (None, "auto", "draft", "balanced", "best", "reference"):
        assert codes(planned(planner, tier=tier, negative_prompt="y")) == []
    assert codes(planned(planner, tier="balanced", guidance_scale=7.5)) == []
    assert codes(planned(planner, tier="draft", guidance_scale=12)) == [], "its document says nothing of scales"


def test_the_end_of_a_prompt_that_is_not_read_is_said_and_shown(planner):
    plan = planned(planner, prompt=LONG_TEXT, negative_prompt=f"{LONG_TEXT} y")
    assert codes(plan) == ["prompt_cut", "negative_prompt_cut"]
    prompt, negative = (warning.message for warning in plan.warnings)
    reads = "the model reads 3 tokens, special tokens included"
    assert prompt == f"prompt: {reads}, and ignored the last 13 characters: word10 word11"
    assert negative.endswith("the last 15 characters: word10 word11 y")


def test_a_long_text_is_looked_at_too_and_shown_in_part(planner):
    text = "a " * LONG
    for _ in range(2):  # the second time it is known
        (warning,) = planned(planner, prompt=text).warnings
        assert f"the last {len(text) - 20} characters" in warning.message
        assert warning.message.endswith(f": {text[20:][:SHOWN]}…")


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_a_negative_prompt_without_guidance_is_said_to_be_ignored_and_not_that_it_is_cut(planner, scale):
    plan = planned(planner, tier="draft", guidance_scale=scale, negative_prompt=LONG_TEXT)
    assert codes(plan) == ["negative_prompt_ignored"]
    assert (plan.specs[0].guidance, plan.specs[0].unet_rows) == (1.0, 1), "0 is none, as in diffusers"


@pytest.mark.parametrize(
    ("tier", "scale", "words"),
    [
        ("balanced", 12.5, "12.5 is above what the schedule was validated at (3, 7.5)"),
        ("balanced", 0, "1, no guidance, is below what the schedule was validated at (3, 7.5)"),
        ("balanced", 5, "5 lies between scales at which the schedule was validated (3, 7.5), and is not one of them"),
        ("best", 5.01, "5.01 is above what the schedule was validated at (5)"),
    ],
)
def test_a_scale_at_which_the_schedule_was_not_validated_is_said(planner, tier, scale, words):
    (warning,) = planned(planner, tier=tier, guidance_scale=scale).warnings
    assert warning.code == "guidance_not_validated"
    assert warning.message.startswith(f"guidance_scale: {words}")


def planner_of_best(model, best):
    """Where `best` means this schedule and there is no other tier."""
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    catalog.publish(best)
    catalog.promote("best", best.digest)
    schedules = ActiveSchedules(lambda: catalog, model, STEPS)
    assert Watch(schedules, lambda: catalog).refresh()
    return Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.0, Settings())


def test_a_schedule_with_corrections_by_scale_holds_between_them_and_says_where_it_does_not(model):
    scales = (1.0, 3.0, 7.5)
    fits = tuple(ScaledCorrections(guidance=scale, corrections=(Correction(),) * 4) for scale in scales)
    where = Validated(sizes=(model.image_size,), guidance=scales, default_guidance=5.0)
    wide = schedule(model, 4).model_copy(update={"scaled_corrections": fits, "validated": where})
    planner = planner_of_best(model, wide)
    for scale in (*scales, 2.5):
        assert codes(planned(planner, tier="best", guidance_scale=scale)) == []
    assert planned(planner, tier="best").specs[0].guidance == 5.0, "what it was made for"
    assert planned(planner, tier="reference").specs[0].guidance == 5.0
    (warning,) = planned(planner, tier="best", guidance_scale=9).warnings
    assert warning.code == "guidance_not_validated"
    assert "9 is above what the schedule was validated at (1, 3, 7.5)" in warning.message
    assert warning.message.endswith("its images may be worse than its figures say; it runs with the corrections of 7.5")


def test_a_scale_with_corrections_that_are_not_validated_is_said_and_takes_its_own(model):
    """A tier is validated for the scales around its own at which it is no worse than by hand: less than it is fitted at."""
    scales = (1.0, 2.0, 3.0, 7.5)
    fits = tuple(ScaledCorrections(guidance=scale, corrections=(Correction(latent=scale),) * 4) for scale in scales)
    where = Validated(sizes=(model.image_size,), guidance=(2.0, 3.0), default_guidance=3.0)
    narrow = schedule(model, 4).model_copy(update={"scaled_corrections": fits, "validated": where})
    planner = planner_of_best(model, narrow)
    for scale, end in ((5.0, "say"), (1.0, "say"), (9.0, "say; it runs with the corrections of 7.5")):
        (warning,) = planned(planner, tier="best", guidance_scale=scale).warnings
        assert warning.message.endswith(f"its images may be worse than its figures {end}")
        assert narrow.corrections_at(scale) == narrow.corrections_at(min(scale, 7.5)), "which is what it runs with"
    (at_five,) = {one.latent for one in narrow.corrections_at(5.0)}
    assert at_five == 5.0, "between two fits each number is taken linearly, validated or not"


def test_a_request_that_names_no_scale_gets_that_of_the_schedule_that_serves(model, planner):
    scales = {tier: planned(planner, tier=tier).specs[0].guidance for tier in ("draft", "balanced", "best", "reference")}
    assert scales == {"draft": 3.0, "balanced": 3.0, "best": 5.0, "reference": 3.0}
    digest = schedule(model, SEGMENTS["best"]).digest
    assert planned(planner, schedule=digest).specs[0].guidance == 5.0


def test_auto_predicts_each_tier_at_its_own_scale(model):
    """A tier without guidance takes half the rows, so that it keeps a deadline that it would miss with it."""

    def forecast(program, unet_rows, images, tier, size, chunks):
        return unet_rows * len(program.steps)

    guided = planning(model, {"draft": (3.0,), "best": (3.0,)}, forecast)
    assert planned(guided, tier="auto", deadline_ms=5000).entry.tier == "draft"
    plain = planning(model, {"draft": (3.0,), "best": (1.0,)}, forecast)
    plan = planned(plain, tier="auto", deadline_ms=5000)
    assert (plan.entry.tier, plan.predicted) == ("best", 4)
    assert planned(plain, tier="auto", deadline_ms=5000, guidance_scale=3).entry.tier == "draft"


def test_a_default_tier_that_is_not_served_is_said_where_no_tier_was_named(model):
    without = planning(model, {"draft": ()})
    for fields in ({}, {"tier": "auto"}):
        plan = planned(without, **fields)
        assert (plan.entry.tier, codes(plan)) == (REFERENCE, ["default_tier_not_served"])
    assert "balanced, the default, is not served now" in plan.warnings[0].message
    assert codes(planned(without, tier=REFERENCE)) == codes(planned(without, tier="draft")) == []
    assert codes(planned(without, tier="auto", deadline_ms=1000)) == []

    alone = planning(model, {})
    assert codes(planned(alone, tier="auto", deadline_ms=1000)) == ["default_tier_not_served"]

    class OnPurpose(Settings):
        default_tier = REFERENCE

    assert codes(planned(planning(model, {}, settings=OnPurpose))) == []


def test_a_deadline_that_no_tier_should_keep_is_said(model):
    slow = planning(model, {"draft": (), "best": ()}, lambda *_: 2.0)
    plan = planned(slow, tier="auto", deadline_ms=1999)
    assert (plan.entry.tier, codes(plan)) == ("draft", ["deadline_at_risk"])
    assert codes(planned(slow, tier="auto", deadline_ms=2000)) == []


class InArm(Assigner):
    """Everybody is in the arm, whose schedule is this one or could not be loaded."""

    def __init__(self, entry=None):
        self.entry = entry

    def assign(self, entry, unit, request_id):
        experiment = type("Experiment", (), {"name": "trial"})
        assignment = Assignment(experiment, "enrolled", "b", "unit", fallback=self.entry is None)
        return replace(self.entry or entry, tier=entry.tier), assignment

    def bypassed(self, digest):
        return None


def test_an_arm_is_served_at_its_own_schedules_scale_and_one_that_falls_back_is_said(model, planner):
    arm = ActiveSchedules(lambda: None, model, STEPS).compiled(schedule(model, 1, (6.0,)))
    plan = planned(planning(model, {"balanced": (3.0,)}, assigner=InArm(arm)))
    assert (plan.specs[0].guidance, codes(plan)) == (6.0, [])
    plan = planned(planning(model, {"balanced": (3.0,)}, assigner=InArm()))
    assert (plan.specs[0].guidance, codes(plan)) == (3.0, ["arm_not_served"])


def test_covariates_of_a_request_are_the_same_whatever_its_arm_is(model):
    """They are taken from what the tier means by itself: an arm with other steps, cost and scale changes none of them."""
    schedules = ActiveSchedules(lambda: None, model, STEPS)
    arms = [schedules.compiled(schedule(model, *shape)) for shape in ((1, (6.0,)), (2, (1.0,)))]
    known = []
    for arm in (*arms, None):
        made = planned(planning(model, {"balanced": (3.0,)}, assigner=InArm(arm)), num_images=2, prompt="red heart")
        covariates = made.assignment.covariates
        assert (covariates.images, covariates.prompt_characters, covariates.guidance) == (2, 9, 3.0)
        known.append(covariates.model_dump(exclude={"arrived"}))
    assert known[0] == known[1] == known[2]
    teacher = planned(planning(model, {"balanced": (3.0,)}), tier="reference", num_images=2, guidance_scale=3.0)
    assert known[0]["teacher_macs"] == teacher.macs


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_previews_that_there_is_no_step_for_are_said(planner, wanted):
    for tier, steps in SEGMENTS.items():
        plan = planned(planner, tier=tier, previews=wanted)
        made = len(ImageTask(plan.specs[0], 0.0, [0] * (steps + 1)).preview_at)
        assert made == len(preview_places(steps, wanted)) == min(wanted, steps - 1)
        assert codes(plan) == (["fewer_previews"] if made < wanted else [])


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("quality", [100, 99, 0])
@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_what_a_format_cannot_do_is_said(planner, name, quality, lossless):
    plan = planned(planner, tier="draft", output_format=name, output_compression=quality, lossless=lossless)
    keeps_all = name == "png" or (name == "webp" and lossless)
    said = ["lossless_ignored"] * (lossless and not keeps_all) + ["compression_ignored"] * (keeps_all and quality < 100)
    assert (plan.image_format.name, plan.image_format.quality, plan.image_format.lossless) == (name, quality, lossless)
    assert (codes(plan), of_the_image(plan.warnings)) == (said, [])


def test_a_distilled_model_is_served_without_guidance_and_says_so_where_some_is_asked_for(model):
    distilled = planning(replace(model, few_steps=4, usual_guidance=1.0), {"draft": ()})
    assert (planned(distilled, tier="draft").specs[0].guidance, codes(planned(distilled, tier="draft"))) == (1.0, [])
    plan = planned(distilled, tier="draft", guidance_scale=7.5)
    assert (plan.specs[0].guidance, codes(plan)) == (7.5, ["guidance_on_distilled_model"])
    assert codes(planned(distilled, tier="draft", negative_prompt="y")) == ["negative_prompt_ignored"]


def test_an_unconditional_model_draws_whatever_the_prompt_and_says_that_it_has_no_effect(tmp_path):
    model = load(model_folders.ddpm(tmp_path / "ddpm"))
    unconditional = planning(model, {})
    plan = planned(unconditional, prompt="red heart", tier=REFERENCE, negative_prompt="y")
    assert codes(plan) == ["negative_prompt_ignored", "prompt_ignored"]
    assert plan.specs[0].prompt == ""
    assert model.encode([plan.specs[0].prompt]) is not None, "what is left of it is taken"
    with pytest.raises(InvalidInput) as refused:
        planned(unconditional, guidance_scale=1.01)
    assert refused.value.message == "guidance_scale: this model has no guidance: leave it out, or say 1"
    assert codes(planned(unconditional, tier=REFERENCE, guidance_scale=0)) == ["prompt_ignored"]


class Renderer:
    def submit(self, specs, preview=None, progress=None):
        futures = [Future() for _ in specs]
        for future in futures:
            future.set_result(ImageResult(torch.full((8, 8, 3), 128, dtype=torch.uint8), 10, Counter(full=1), 0.0, 0.5))
        return futures


async def never():
    await asyncio.Event().wait()


def counted():
    samples = metrics.warnings_total.collect()[0].samples
    return Counter({sample.labels["code"]: sample.value for sample in samples if sample.name.endswith("_total")})


def test_what_is_said_is_in_the_answer_in_the_file_in_the_log_and_counted(model):
    noticed = replace(model, notices=(Notice("safety_checker_not_run", "the folder has one"),))
    generation = Generation(planning(noticed, {"draft": ()}), Renderer(), Quotas())
    request, context = GenerateRequest(prompt=LONG_TEXT), RequestContext("id-1")
    before = counted()
    answer = asyncio.run(generation.answer(request, context, never()))
    said = ["safety_checker_not_run", "default_tier_not_served", "prompt_cut"]
    assert [warning.code for warning in answer.warnings] == said
    text = Image.open(io.BytesIO(base64.b64decode(answer.images[0]))).text
    assert text["warnings"] == "safety_checker_not_run,prompt_cut", "what tells of the image"
    assert context.log_fields()["warnings"] == said
    assert "word11" not in str(context.log_fields()), "a log says nothing of what was sent"
    assert counted() - before == Counter(said)


def test_an_answer_that_meets_all_wishes_says_nothing(model):
    generation = Generation(planning(model, {"draft": ()}), Renderer(), Quotas())
    context = RequestContext("id-1")
    answer = asyncio.run(generation.answer(GenerateRequest(prompt="x", tier="draft"), context, never()))
    assert answer.warnings == []
    assert "warnings" not in Image.open(io.BytesIO(base64.b64decode(answer.images[0]))).text
    assert "warnings" not in context.log_fields()
