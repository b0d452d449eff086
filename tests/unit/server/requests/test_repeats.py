"""Images that were made before are answered as they were, for nothing, to whom they belong, and never instead of others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from painted import Painter, answered, file_of, generation_of, streamed
from pictures import contents
from PIL import Image
from server_model import small_model

from engine.image_size import ImageSize
from registry.errors import InvalidInput
from registry.schedule import Segment
from server.access.keys import ANONYMOUS, Key
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.image_task import ImageResult, ImageSpec
from server.errors import GenerationFailed, QuotaExceeded
from server.http.documents import REPEATS, repeats
from server.http.image_events import events
from server.loras.adapter_set import AdapterSet, LoraUse
from server.marking.credential import Credential
from server.marking.marker import Marker
from server.marking.trial_certificate import write_trial_certificate
from server.requests.context import RequestContext
from server.requests.image_files import ImageFiles
from server.requests.made import ImageMade
from server.requests.repeats import OF_THE_PIXELS, OF_THE_WORK, OVERHEAD, Repeats
from server.telemetry import metrics

MIB = 2**20
OTHER = ImageSize(16, 16)


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def painter(model):
    return Painter(model)


def repeating(model, painter, kept=None, **options):
    return generation_of(model, painter, others=[OTHER], repeats=kept or Repeats(MIB, 3600), **options)


@pytest.fixture
def generation(model, painter):
    return repeating(model, painter)


def written(levels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(levels, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


GREY, HALF = np.full((8, 8, 3), 128), np.repeat(np.eye(2), 4, axis=0).repeat(4, axis=1)[..., None].repeat(3, axis=2) * 255
EDIT = {"image": written(GREY), "mask": written(HALF), "strength": 0.5}
ANOTHER_IMAGE = {  # (what a request says besides, what another one says instead)
    "prompt": ({}, {"prompt": "y"}),
    "negative_prompt": ({}, {"negative_prompt": "y"}),
    "seed": ({}, {"seed": 8}),
    "size": ({}, {"size": "16x16"}),
    "guidance_scale": ({}, {"guidance_scale": 4.0}),
    "prompt_syntax": ({}, {"prompt_syntax": "webui"}),
    "image": (EDIT, EDIT | {"image": written(GREY + 1)}),
    "mask": (EDIT, EDIT | {"mask": written(255 - HALF)}),
    "strength": (EDIT, EDIT | {"strength": 0.75}),
}
THE_SAME_IMAGE = {
    "tier": {"tier": "reference"},  # by which name a schedule is asked for is all one
    "model": {"model": None},
    "unit": {"unit": "somebody"},
    "deadline_ms": {"deadline_ms": 20_000},
    "output_format": {"output_format": "webp"},
    "output_compression": {"output_format": "jpeg", "output_compression": 50},
    "lossless": {"output_format": "webp", "lossless": True},
    "response_format": {"response_format": "url"},
    "priority": {"priority": "background"},
    "num_images": {"num_images": 1},
}
ELSEWHERE = {"schedule", "loras"}  # need a registry and a folder: see the tests of specs, whose fields they become


def test_every_field_of_a_request_is_known_here_to_change_its_images_or_not():
    assert ANOTHER_IMAGE.keys() | THE_SAME_IMAGE.keys() | ELSEWHERE == GenerateRequest.model_fields.keys()


@pytest.mark.parametrize("field", ANOTHER_IMAGE)
def test_a_request_that_differs_in_anything_its_images_depend_on_is_no_repeat(generation, painter, field):
    first, other = ANOTHER_IMAGE[field]
    answered(generation, **first)
    assert answered(generation, **other).repeats == []
    assert len(painter.specs) == 2
    assert answered(generation, **first).repeats == [0]
    assert answered(generation, **other).repeats == [0]
    assert len(painter.specs) == 2


@pytest.mark.parametrize("field", THE_SAME_IMAGE)
def test_a_request_that_differs_in_nothing_else_is_a_repeat(generation, painter, field):
    answered(generation)
    assert answered(generation, **THE_SAME_IMAGE[field]).repeats == [0]
    assert len(painter.specs) == 1


OTHER_VALUES = {
    "prompt": "y",
    "negative": "y",
    "guidance": 4.0,
    "seed": 8,
    "size": OTHER,
    "keeps": True,
    "embedded": True,
    "chunks": 2,
    "syntax": "webui",
    "adapters": AdapterSet((LoraUse("grey", "0" * 64, 0.5),)),
    "tier": "fast",
    "arm": "a",
    "deadline": 1.0,
    "key": "somebody else",
    "key_seconds": 1.0,
    "previews": 2,
    "teacher_macs": 1,
    "request_id": "another",
    "background": True,
    "idle": True,
}
IN_OTHER_FORMS = {"program": "by the digest of the plan's schedule", "edit": "by key and strength, as requests have them"}


def planned(generation, **wishes):
    request = GenerateRequest(**{"prompt": "x", "seed": 7} | wishes)
    return asyncio.run(generation.planner.plan(request, "id-1", ANONYMOUS))


def kept_of(generation, plan, **options):
    """Repeats that have the plan's first image."""
    kept, spec = Repeats(MIB, 3600, **options), plan.specs[0]
    kept.keep(plan, 0, ImageResult(Painter.painted(spec), plan.macs, spec.program.counts, 0.0, 0.0))
    assert kept.applied(plan).repeats.keys() == {0}
    return kept


def test_every_field_of_a_spec_is_of_its_pixels_or_of_the_work_and_tried_here():
    names = {field.name for field in fields(ImageSpec)}
    assert {*OF_THE_PIXELS} | {*OF_THE_WORK} == names == OTHER_VALUES.keys() | IN_OTHER_FORMS.keys()
    assert {*OF_THE_PIXELS} & {*OF_THE_WORK} == set()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_specs_that_differ_in_a_field_of_the_pixels_are_other_images_and_in_others_the_same(generation, name):
    plan = planned(generation)
    other = replace(plan, specs=[replace(plan.specs[0], **{name: OTHER_VALUES[name]})])
    found = kept_of(generation, plan).applied(other).repeats
    assert bool(found) == (name in OF_THE_WORK and name != "key")
    if name == "key":
        assert kept_of(generation, plan, across_keys=True).applied(other).repeats


def test_another_schedule_or_other_weights_make_another_image(model, generation):
    plan = planned(generation)
    kept = kept_of(generation, plan)
    document = plan.entry.schedule
    weights = model.ref.model_copy(update={"fingerprint": f"sha256:{'1' * 64}"})
    for change in ({"segments": (Segment(partial=(1,), branch=1),), "cost": None}, {"model": weights}):
        schedule = document.model_copy(update=change)
        program = replace(plan.entry.program, schedule=schedule)
        entry = replace(plan.entry, digest=schedule.digest, program=program)
        assert not kept.applied(replace(plan, entry=entry)).repeats


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_a_repeat_is_the_first_image_whatever_it_is_asked_for_as(model, generation, name):
    first = answered(generation, output_format=name)
    again = answered(generation, output_format=name)
    assert contents(again.images) == contents(first.images)
    fresh = answered(generation_of(model, Painter(model)), output_format="webp", output_compression=40)
    repeated = answered(generation, output_format="webp", output_compression=40)
    assert contents(repeated.images) == contents(fresh.images)


def test_a_repeat_costs_nothing_and_is_counted(model, painter):
    def counts():
        macs, seconds = metrics.repeat_macs_total.labels("reference"), metrics.request_seconds
        found = [metrics.repeats_total.labels(cache)._value.get() for cache in ("hit", "miss")]
        ended = sum(bucket.get() for bucket in seconds.labels("reference", metrics.NO_ARM, "repeat")._buckets)
        return [macs._value.get(), *found, ended]

    one = planned(repeating(model, painter)).macs
    key, before = Key("shop", one, None), counts()
    generation = repeating(model, painter, quotas=Quotas(lambda: 0.0))
    first = answered(generation, key=key)
    context = RequestContext("id-2", key)
    again = answered(generation, context=context)
    assert (first.macs, again.macs, again.macs_per_image) == (one, 0, 0)
    assert again.steps.model_dump() == {"full": 0, "partial": 0, "null": 0}
    assert (again.predicted_ms, again.queue_ms, again.denoise_ms) == (0.0, 0.0, 0.0)
    assert [after - then for after, then in zip(counts(), before, strict=True)] == [one, 1, 1, 1]
    line = context.log_fields()
    assert (line["repeats"], line["images"], line["macs"]) == (1, 0, 0)
    saved = metrics.repeat_macs_total.labels("reference")._value.get()
    with pytest.raises(QuotaExceeded):
        answered(generation, key=key, num_images=2)
    assert metrics.repeat_macs_total.labels("reference")._value.get() == saved, "nobody got it"


def test_of_several_images_only_those_are_made_that_were_not(model, painter):
    one = planned(repeating(model, painter)).macs
    key = Key("shop", 3 * one, None)
    generation = repeating(model, painter, quotas=Quotas(lambda: 0.0))
    alone = answered(generation, key=key, seed=8)
    several = answered(generation, key=key, num_images=3)  # which would be 4 images in a minute, were all of them made
    assert [spec.seed for spec in painter.specs] == [8, 7, 9]
    assert (several.repeats, several.macs, several.macs_per_image) == ([1], 2 * one, 2 * one // 3)
    assert contents(several.images[1:2]) == contents(alone.images)
    assert [int(np.asarray(Image.open(io.BytesIO(file_of(image))))[0, 0, 0]) for image in several.images] == [7, 8, 9]
    assert answered(generation, key=key, num_images=3).repeats == [0, 1, 2]


def test_a_stream_gives_repeats_first_and_says_of_each_image_whether_it_is_one(generation, painter):
    alone = answered(generation, seed=8)
    made = streamed(generation, num_images=2, progress=True, previews=1)
    images = [one for one in made if isinstance(one, ImageMade)]
    assert [(one.image, one.is_repeat) for one in images] == [(1, True), (0, False)]
    assert contents([images[0].file]) == contents(alone.images)

    async def said():
        async def rest():
            for one in made[1:]:
                yield one

        return [json.loads(event.split(b"data: ")[1]) async for event in events(made[0], rest(), "image_generation")]

    planned_event, *others = asyncio.run(said())
    done = [event for event in others if event["type"].endswith("completed")]
    assert [(event["seed"], event["repeat"], event["macs"] > 0) for event in done] == [(8, True, False), (7, False, True)]
    assert done[-1]["request"]["repeats"] == [1]
    assert planned_event["macs"] == done[1]["macs"] == done[-1]["request"]["macs"]
    assert [warning["code"] for warning in planned_event["warnings"]] == ["fewer_previews"]
    assert repeats(made[0].plan.repeats) == {REPEATS: "1"}
    assert repeats({}) == {}


def test_what_a_stream_made_is_a_repeat_for_an_answer(generation, painter):
    streamed(generation, num_images=2)
    assert answered(generation, num_images=2).repeats == [0, 1]
    assert len(painter.specs) == 2


def test_a_key_never_gets_what_was_made_for_another_one_unless_that_is_allowed(model, painter):
    mine, yours = Key("me", None, None), Key("you", None, None)
    generation = repeating(model, painter)
    answered(generation, key=mine)
    assert answered(generation, key=yours).repeats == []
    assert answered(generation, key=mine).repeats == [0]
    shared = repeating(model, painter, Repeats(MIB, 3600, across_keys=True))
    answered(shared, key=mine)
    assert answered(shared, key=yours).repeats == [0]


def test_memory_keeps_its_bound_and_what_was_used_least_recently_goes_first(model, painter):
    size = 8 * 8 * 3 + OVERHEAD
    kept = Repeats(3 * size + 1, 3600)
    generation = repeating(model, painter, kept)
    for seed in range(3):
        answered(generation, seed=seed)
    answered(generation, seed=0)
    answered(generation, seed=3)  # 1 goes
    assert metrics.repeat_bytes._value.get() == kept._images.currsize == 3 * size
    assert [answered(generation, seed=seed).repeats for seed in (0, 2, 3)] == [[0]] * 3
    assert answered(generation, seed=1).repeats == []
    assert answered(generation, seed=9, size="16x16").repeats == [], "which fits"
    assert kept._images.currsize <= 3 * size + 1


def test_an_image_that_is_larger_than_all_memory_is_answered_and_not_kept(model, painter):
    generation = repeating(model, painter, Repeats(100, 3600))
    assert [answered(generation).repeats for _ in range(2)] == [[], []]


def test_an_image_is_forgotten_in_time_however_often_it_was_asked_for(model, painter):
    now = [0.0]
    kept = Repeats(MIB, 60, clock=lambda: now[0])
    generation = repeating(model, painter, kept)
    answered(generation)
    for now[0] in (20.0, 40.0, 59.0):
        assert answered(generation).repeats == [0]
    now[0] = 60.0
    assert answered(generation).repeats == []
    now[0] = 120.0
    kept._export()
    assert (len(kept._images), metrics.repeat_bytes._value.get()) == (0, 0)


def test_what_failed_is_made_again(generation, painter):
    painter.fails[0] = GenerationFailed("no")
    with pytest.raises(GenerationFailed):
        answered(generation)
    assert answered(generation).repeats == []
    assert len(painter.specs) == 2


def test_an_image_that_ran_other_steps_than_its_schedules_is_nobody_elses(generation, painter):
    painter.short = 1
    answered(generation)
    assert answered(generation).repeats == []


def test_the_first_of_two_images_that_were_made_at_once_stays(model, generation):
    plan = planned(generation)
    kept, spec = kept_of(generation, plan), plan.specs[0]
    kept.keep(plan, 0, ImageResult(Painter.painted(replace(spec, seed=99)), plan.macs, spec.program.counts, 0.0, 0.0))
    assert (kept.applied(plan).repeats[0].pixels == Painter.painted(spec)).all()


def test_nothing_is_loaded_for_a_request_that_is_answered_by_repeats_alone(model, painter):
    class Loading:
        entered = 0

        async def enter(self, plan):
            self.entered += 1

        def leave(self, plan):
            pass

    loading = Loading()
    generation = repeating(model, painter, residencies=[loading])
    for _ in range(3):
        answered(generation, num_images=2)
    assert loading.entered == 1


def test_nothing_of_a_request_is_offered_to_observers_as_made_for_it(model, painter):
    """Such as the shadow teacher, which would make it again."""

    class Seen(list):
        def ended(self, context, plan, seconds):
            self.append((context.code, dict(context.results), dict(plan.repeats)))

    seen = Seen()
    generation = repeating(model, painter, observers=[seen])
    answered(generation, seed=8)
    answered(generation, num_images=2)
    streamed(generation, num_images=2)
    assert [(code, [*results], [*again]) for code, results, again in seen] == [
        ("ok", [0], []),
        ("ok", [0], [1]),
        ("ok", [], [0, 1]),
    ]


def test_a_repeat_is_marked_anew(model, painter, tmp_path):
    write_trial_certificate(tmp_path)
    marker = Marker(Credential.read(tmp_path / "certificate.pem", tmp_path / "key.pem"))
    generation = repeating(model, painter, files=ImageFiles(marker=marker))
    first, again = answered(generation), answered(generation)
    assert first.marked
    assert again.marked
    assert again.repeats == [0]
    pixels = [np.asarray(Image.open(io.BytesIO(file_of(answer.images[0])))) for answer in (first, again)]
    assert (pixels[0] == pixels[1]).all()
    assert first.images != again.images, "each mark has a name and a signature of its own"


def test_without_the_setting_every_image_is_made(model, painter):
    generation = generation_of(model, painter)
    assert [answered(generation).repeats for _ in range(2)] == [[], []]
    assert len(painter.specs) == 2


def test_a_refusal_is_a_refusal_though_the_image_is_there(generation):
    answered(generation)
    with pytest.raises(InvalidInput):
        answered(generation, size="12x12")
