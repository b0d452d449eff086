"""One request: it ends when it is done, cancelled, when the client leaves, or when time is over; the answer adds up."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections import Counter
from concurrent.futures import Future

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from server_model import small_model
from typing_extensions import override

from registry.errors import InvalidInput, NotFound, Overloaded, StoreUnavailable
from server import VERSION
from server.access.keys import ANONYMOUS, Key
from server.access.quota import Quotas
from server.api import GenerateRequest
from server.batching.image_task import ImageResult
from server.errors import Cancelled, ClientGone, DeadlineExceeded, GenerationFailed
from server.experiments.active import ActiveExperiments
from server.requests.context import RequestContext
from server.requests.generation import Generation, RequestObserver
from server.requests.image_files import ImageFiles
from server.requests.made import ImageMade, PreviewMade, RequestPlanned, StepMade
from server.requests.planner import Planner
from server.requests.running import while_wanted
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules

GREY = torch.full((8, 8, 3), 128, dtype=torch.uint8)


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "reference", 3.0


class ObserverLog(RequestObserver, list):
    """(tier, how it ended, images that were done) of each request."""

    @override
    def ended(self, context, plan, seconds):
        self.append((plan.entry.label, context.code, len(context.results)))


class Renderer:
    """Gives grey images, whose cost it makes up; where it `keeps` them, a test finishes them."""

    def __init__(self):
        self.specs, self.futures, self.preview, self.keeps, self.pixels = [], [], None, False, GREY
        self.asked = threading.Event()

    def submit(self, specs, preview=None, progress=None):
        self.specs, self.preview, self.progress = specs, preview, progress
        self.futures = [Future() for _ in specs]
        if not self.keeps:
            self.finish()
        self.asked.set()
        return self.futures

    def finish(self):
        for i, future in enumerate(self.futures, 1):
            future.set_result(ImageResult(self.pixels, 10, Counter(full=4), 0.001 * i, 0.5))


@pytest.fixture
def renderer():
    return Renderer()


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def observer():
    return ObserverLog()


def generating(model, renderer, observer, open_catalog=lambda: None):
    schedules = ActiveSchedules(open_catalog, model, 4)
    planner = Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.25, Settings())
    return Generation(planner, renderer, Quotas(), [observer])


@pytest.fixture
def generation(model, renderer, observer):
    return generating(model, renderer, observer)


@pytest.fixture
def hanging(model, renderer, observer):
    """The registry does not answer until the test is over."""
    over = threading.Event()

    def open_catalog():
        over.wait(60)
        raise StoreUnavailable("the test is over")

    yield generating(model, renderer, observer, open_catalog)
    over.set()


def counted(outcome, tier):
    """How many requests ended like this."""
    name = "flexi_request_seconds_count"
    samples = [sample for sample in metrics.request_seconds.collect()[0].samples if sample.name == name]
    return sum(sample.value for sample in samples if (sample.labels["outcome"], sample.labels["tier"]) == (outcome, tier))


async def never():
    await asyncio.Event().wait()


async def at_once():
    return None


def answer(generation, gone=never, **fields):
    request = GenerateRequest(prompt="ein Herz ♥", **fields)
    return asyncio.run(generation.answer(request, RequestContext("id-1", ANONYMOUS), gone()))


def test_an_observer_that_fails_changes_no_answer_and_keeps_nothing_from_the_others(model, renderer, observer, caplog):
    class Broken(RequestObserver):
        @override
        def ended(self, context, plan, seconds):
            raise InvalidInput("of this alone")

    generation = generating(model, renderer, observer)
    generation._observers = [Broken(), observer]
    assert answer(generation).tier == "reference"
    assert observer == [("reference", "ok", 1)]
    assert "of this alone" in caplog.text


def test_the_answer(generation, renderer):
    response = answer(generation, num_images=3, seed=5)
    assert [spec.seed for spec in renderer.specs] == [5, 6, 7]
    assert {(spec.guidance, spec.tier) for spec in renderer.specs} == {(3.0, "reference")}
    assert (response.macs, response.macs_per_image, response.queue_ms, response.denoise_ms) == (30, 10, 3.0, 500.0)
    assert response.predicted_ms == 250
    assert response.steps.model_dump() == {"full": 4, "partial": 0, "null": 0}
    texts = [Image.open(io.BytesIO(base64.b64decode(data))).text for data in response.images]
    assert [text["seed"] for text in texts] == ["5", "6", "7"]
    assert texts[0]["prompt"] == "ein Herz ♥"
    assert texts[0]["schedule"] == response.schedule


def test_files_name_the_build(model, renderer):
    schedules = ActiveSchedules(lambda: None, model, 4)
    planner = Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.25, Settings())
    for commit, said in (("", f"flexiffusion-serve {VERSION}"), ("1a2b3c", f"flexiffusion-serve {VERSION} (1a2b3c)")):
        (image,) = answer(Generation(planner, renderer, Quotas(), files=ImageFiles(commit))).images
        assert Image.open(io.BytesIO(base64.b64decode(image))).text["software"] == said


@pytest.mark.parametrize(("name", "quality"), [("png", 100), ("jpeg", 100), ("webp", 30)])
def test_files_are_made_in_the_format_that_was_asked_for(generation, name, quality):
    response = answer(generation, num_images=2, output_format=name, output_compression=quality)
    assert response.output_format == name
    for image in response.images:
        assert Image.open(io.BytesIO(base64.b64decode(image))).format == name.upper()


def test_a_seed_is_drawn_and_returned(generation, renderer):
    returned, rendered = [], []
    for _ in range(8):
        returned.append(answer(generation).seed)
        rendered.append(renderer.specs[0].seed)
    assert returned == rendered
    assert len(set(returned)) == 8


def test_a_tier_that_there_is_not_is_refused(generation):
    with pytest.raises(NotFound) as refused:
        answer(generation, tier="nope")
    assert refused.value.param == "tier"


@pytest.mark.parametrize(
    ("gone", "deadline_ms", "error"), [(at_once, None, ClientGone), (never, 10, DeadlineExceeded)], ids=["left", "late"]
)
def test_work_that_nobody_wants_is_given_up(generation, renderer, gone, deadline_ms, error):
    renderer.keeps = True
    with pytest.raises(error):
        answer(generation, gone, num_images=2, deadline_ms=deadline_ms)
    assert [future.cancelled() for future in renderer.futures] == [True, True]
    assert len(generation.running) == 0


def test_a_request_is_cancelled_by_its_id_and_its_key(generation, renderer):
    renderer.keeps = True

    async def go():
        request = GenerateRequest(prompt="x")
        mine = asyncio.create_task(generation.answer(request, RequestContext("id-1", Key("me", None, None)), never()))
        await asyncio.sleep(0.01)
        assert generation.running.cancel("somebody else", "id-1") == 0
        assert generation.running.cancel("me", "id-2") == 0
        assert not mine.done()
        assert generation.running.cancel("me", "id-1") == 1
        with pytest.raises(Cancelled):
            await mine
        assert generation.running.cancel("me", "id-1") == 0

    asyncio.run(go())
    assert renderer.futures[0].cancelled()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("ends", "error", "outcome"),
    [("late", DeadlineExceeded, "deadline"), ("cancelled", Cancelled, "cancelled"), ("left", ClientGone, "cancelled")],
)
def test_a_request_that_waits_for_the_registry_may_be_given_up(hanging, renderer, streamed, ends, error, outcome):
    before, context = counted(outcome, metrics.CUSTOM), RequestContext("id-1")

    async def go():
        request = GenerateRequest(prompt="x", schedule="12345678", deadline_ms=50 if ends == "late" else None)
        gone = at_once if ends == "left" else never
        if streamed:
            first = anext(hanging.stream(request, context, 0))
            work = while_wanted(first, [(gone(), ClientGone())])
        else:
            work = hanging.answer(request, context, gone())
        task = asyncio.create_task(work)
        if ends == "cancelled":
            await asyncio.sleep(0.05)
            assert hanging.running.cancel(ANONYMOUS.name, "id-1") == 1
        with pytest.raises(error):
            await asyncio.wait_for(task, 30)

    asyncio.run(go())
    assert (renderer.specs, len(hanging.running)) == ([], 0)
    assert counted(outcome, metrics.CUSTOM) == before + 1
    assert context.log_fields() == {"asked": "12345678", "code": error.code}


def test_the_deadline_runs_from_the_arrival(generation):
    request = GenerateRequest(prompt="x", deadline_ms=2000)
    plan = asyncio.run(generation.planner.plan(request, "id-1", ANONYMOUS, arrived=100.0))
    assert {spec.deadline for spec in plan.specs} == {102.0}
    assert {spec.request_id for spec in plan.specs} == {"id-1"}


def streamed(generation, renderer, act, previews=2, context=None, progress=False, **fields):
    """What a stream of two images gives while `act(renderer)` plays the engine in another thread."""

    async def go():
        request = GenerateRequest(prompt="x", num_images=2, seed=7, **fields)
        events = []
        renderer.keeps = True
        renderer.asked.clear()
        acting = asyncio.ensure_future(asyncio.to_thread(lambda: renderer.asked.wait(20) and act(renderer)))
        try:
            async for event in generation.stream(request, context or RequestContext("id-1"), previews, progress):
                events += [event]
        except Exception as error:
            events.append(error)
        renderer.asked.set()
        await acting
        return events

    return asyncio.run(asyncio.wait_for(go(), 30))


def test_a_stream_gives_previews_and_each_image_when_it_is_done(generation, renderer):
    def act(renderer):
        renderer.preview(renderer.specs[1], 0, GREY)
        renderer.futures[1].set_result(ImageResult(GREY, 10, Counter(full=4), 0.0, 0.5))
        renderer.preview(renderer.specs[0], 0, GREY)
        renderer.futures[0].set_result(ImageResult(GREY, 10, Counter(full=4), 0.0, 0.5))

    events = streamed(generation, renderer, act, output_format="jpeg")
    assert [(type(event), event.image) for event in events] == [
        (PreviewMade, 1),
        (ImageMade, 1),
        (PreviewMade, 0),
        (ImageMade, 0),
    ]
    assert {spec.previews for spec in renderer.specs} == {2}
    assert {Image.open(io.BytesIO(base64.b64decode(event.file))).format for event in events} == {"JPEG"}


def test_a_stream_that_shall_tell_progress_begins_with_the_plan_and_counts_steps_of_each_image(generation, renderer):
    def act(renderer):
        for step, image in ((1, 1), (1, 0), (2, 1)):
            renderer.progress(renderer.specs[image], step)
        renderer.finish()

    first, *rest = streamed(generation, renderer, act, previews=0, progress=True)
    assert (type(first), first.plan.seed) == (RequestPlanned, 7)
    assert [(event.image, event.step) for event in rest if isinstance(event, StepMade)] == [(1, 1), (0, 1), (1, 2)]
    assert [type(event) for event in rest[3:]] == [ImageMade, ImageMade]
    streamed(generation, renderer, Renderer.finish)
    assert renderer.progress is None, "nobody asked for it"


def test_a_stream_ends_with_the_error_of_an_image_and_gives_up_the_others(generation, renderer):
    events = streamed(generation, renderer, lambda renderer: renderer.futures[0].set_exception(InvalidInput("no")))
    assert [type(event) for event in events] == [InvalidInput]
    assert renderer.futures[1].cancelled()


def test_a_stream_keeps_its_deadline(generation, renderer, observer):
    before = counted("deadline", "reference")
    (error,) = streamed(generation, renderer, lambda _: None, deadline_ms=30)
    assert counted("deadline", "reference") == before + 1
    assert observer == [("reference", "deadline_exceeded", 0)], "a client that left would be no error of its arm's"
    assert isinstance(error, DeadlineExceeded)
    assert "30 ms" in error.message
    assert all(future.cancelled() for future in renderer.futures)


def test_a_stream_is_measured_and_its_log_line_says_what_it_took(generation, renderer):
    def samples():
        ratios, files = metrics.forecast_ratio.labels("reference"), metrics.stage_seconds.labels("file")
        return [sum(bucket.get() for bucket in histogram._buckets) for histogram in (ratios, files)]

    def act(renderer):
        renderer.preview(renderer.specs[0], 0, GREY)
        renderer.finish()

    (ratios, files), context = samples(), RequestContext("id-1")
    streamed(generation, renderer, act, context=context, tier="reference")
    assert samples() == [ratios + 1, files + 3]
    line = context.log_fields()
    assert len(line.pop("schedule")) == 64
    assert line == {
        "asked": "reference", "tier": "reference", "arm": None, "images": 2, "size": "8x8", "prompt_chunks": 1, "macs": 20,
        "predicted_ms": 250.0,
        "queue_ms": 2.0, "denoise_ms": 500.0,
    }  # fmt: skip


def test_the_log_line_of_a_stream_that_fails_says_so(generation, renderer):
    def act(renderer):
        renderer.futures[0].set_result(ImageResult(GREY, 10, Counter(full=4), 0.0, 0.5))
        renderer.futures[1].set_exception(GenerationFailed("no"))

    context = RequestContext("id-1")
    events = streamed(generation, renderer, act, context=context)
    assert [type(event) for event in events] == [ImageMade, GenerationFailed]
    line = context.log_fields()
    assert (line["code"], line["asked"], line["tier"], line["images"]) == ("generation_failed", None, "reference", 1)


def test_what_is_refused_is_paid_back(generation, renderer, monkeypatch):
    paid = []
    monkeypatch.setattr(generation._quotas, "take", lambda key, macs: paid.append(macs))
    monkeypatch.setattr(generation._quotas, "give_back", lambda key, macs: paid.append(-macs))
    answer(generation)
    assert len(paid) == 1

    def full(*_):
        raise Overloaded("full", retry_after=1)

    monkeypatch.setattr(renderer, "submit", full)
    with pytest.raises(Overloaded):
        answer(generation, num_images=3)
    assert paid == [paid[0], 3 * paid[0], -3 * paid[0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "x" * 4001},
        {"tier": "fast", "schedule": "12345678"},
        {"schedule": "fast"},
        {"seed": 2**63},
        {"seed": 2**63 - 63},
        {"seed": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": -0.01},
        {"guidance_scale": 30.01},
        {"num_images": 1.5},
        {"unknown": 1},
    ],
)
def test_bounds(fields):
    with pytest.raises(ValidationError) as refused:
        GenerateRequest(**{"prompt": "my secret"} | fields)
    assert "my secret" not in str(refused.value)
