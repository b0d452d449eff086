"""How a request's prompts are read: chunks, syntax, what is cut, and what it comes to in the plan."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from memory_store import MemoryStore
from server_model import small_model

from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN
from engine.prompts import ClassPrompts, NoPrompts
from registry.catalog import Catalog
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.experiments.active import ActiveExperiments
from server.models.loading import prompt_chunks
from server.requests.image_files import _read_as
from server.requests.planner import Planner
from server.requests.prompt_pair import LONG, PromptPair, PromptReader
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

STEPS = 4
MOST = 3
TEN = " ".join("abcdefghij")  # a chunk of the model's


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "draft", 3.0


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture(scope="module")
def forecasts():
    return []


@pytest.fixture(scope="module")
def planner(model, forecasts):
    return planning(model, forecasts)


def planning(model, forecasts):
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    for tier, segments in (("draft", 1), ("best", 4)):
        published = Schedule(model=model.ref, solver=model.solver("ddim", STEPS), segments=(Segment(),) * segments)
        catalog.publish(published)
        catalog.promote(tier, published.digest)
    schedules = ActiveSchedules(lambda: catalog, model, STEPS)
    assert Watch(schedules, lambda: catalog).refresh()

    def forecast(program, rows, images, tier, size, chunks):
        forecasts.append(chunks)
        return chunks * len(program.steps)

    prompts = PromptReader(model.prompts, MOST)
    return Planner(schedules, ActiveExperiments(lambda: None, schedules), model, forecast, Settings(), prompts=prompts)


def planned(planner, **fields):
    return asyncio.run(planner.plan(GenerateRequest(**{"prompt": "x"} | fields), "id-1", ANONYMOUS))


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "chunks"),
    [
        ("x", "", 3, 1),
        (TEN, "", 3, 1),
        (f"{TEN} k", "", 3, 2),
        ("x", f"{TEN} {TEN} k", 3, 3),
        ("x", f"{TEN} {TEN} k", 1, 1),
        (f"{TEN} k", "y", 1, 2),
    ],
)
def test_both_prompts_have_as_many_chunks_as_the_longer_of_those_that_count(planner, model, prompt, negative, guidance, chunks):
    plan = planned(planner, prompt=prompt, negative_prompt=negative, guidance_scale=guidance)
    (spec,) = plan.specs
    assert (spec.chunks, spec.syntax) == (chunks, PLAIN)
    assert plan.macs == model.macs_at(None, chunks).of_program(spec.program, spec.unet_rows)
    assert plan.predicted == chunks * len(spec.program.steps)
    assert plan.relative_cost == pytest.approx(plan.macs / spec.teacher_macs, rel=1e-3)
    assert _read_as(spec) == ({"prompt_chunks": str(chunks)} if chunks > 1 else {})


def test_auto_chooses_by_the_length_of_the_prompt(planner):
    """A step of a chunk takes a second here: `best` has four, `draft` one."""
    assert planned(planner, tier="auto", deadline_ms=5000).entry.tier == "best"
    assert planned(planner, tier="auto", deadline_ms=5000, prompt=f"{TEN} k").entry.tier == "draft"


def test_only_what_lies_past_the_last_chunk_is_said_to_be_cut(planner):
    assert not planned(planner, prompt=" ".join([TEN] * MOST)).warnings
    (warning,) = planned(planner, prompt=" ".join([*[TEN] * MOST, "past", "it"])).warnings
    assert warning.code == "prompt_cut"
    reads = "the model reads 3 chunks of 3 tokens, special tokens included"
    assert warning.message == f"prompt: {reads}, and ignored the last 7 characters: past it"


def test_a_syntax_is_the_requests_or_else_the_servers(planner, model):
    (spec,) = planned(planner, prompt="(x:1.3)", prompt_syntax="webui").specs
    assert spec.syntax == "webui"
    assert _read_as(spec) == {"prompt_syntax": "webui"}
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidInput, match=rf"^{field}: \( at character 3 is not closed") as refused:
            planned(planner, **{field: "a (x:1.3", "prompt_syntax": "webui"})
        assert refused.value.param == field
        assert planned(planner, **{field: "a (x:1.3"}).specs[0].syntax == PLAIN
    long = "a " * LONG + "("
    with pytest.raises(InvalidInput, match=f"at character {len(long)} is not closed"):
        planned(planner, prompt=long, prompt_syntax="webui")
    web = PromptReader(model.prompts, MOST, "webui")
    assert web.syntaxes == ["webui", "plain"]
    assert asyncio.run(web.read(GenerateRequest(prompt="(x)"))).syntax == "webui"
    assert asyncio.run(web.read(GenerateRequest(prompt="(x", prompt_syntax="plain"))).syntax == PLAIN


def test_a_setting_that_the_models_prompts_have_no_use_for_is_one_chunk_or_stops_the_start(model):
    set_to = {"prompt_chunks": MOST, "prompt_syntax": PLAIN, "models": ()}
    assert prompt_chunks(SimpleNamespace(**set_to), model) == MOST
    assert prompt_chunks(SimpleNamespace(**set_to | {"prompt_syntax": "webui"}), model) == MOST
    classes = replace(model, prompts=ClassPrompts(10, model.device))
    assert prompt_chunks(SimpleNamespace(**set_to), classes) == 1
    with pytest.raises(InvalidInput, match="must be plain") as refused:
        prompt_chunks(SimpleNamespace(**set_to | {"prompt_syntax": "webui"}), classes)
    assert refused.value.param == "prompt_syntax"


def test_texts_that_t5_reads_have_no_syntax_and_one_chunk(model):
    plain = replace(model, prompts=replace(model.prompts, takes_chunks=False))
    assert prompt_chunks(SimpleNamespace(prompt_chunks=MOST, prompt_syntax=PLAIN, models=()), plain) == 1
    with pytest.raises(InvalidInput, match="must be plain: T5 reads this model's texts"):
        prompt_chunks(SimpleNamespace(prompt_chunks=MOST, prompt_syntax="webui", models=()), plain)
    with pytest.raises(InvalidInput, match=r"^prompt_syntax: T5 reads this model's texts"):
        asyncio.run(PromptReader(plain.prompts).read(GenerateRequest(prompt="x", prompt_syntax="webui")))


def test_a_cut_is_said_with_the_text_encoder_that_cuts(model):
    reading = Reading(cut="the end", reader="CLIP, unlike T5,", tokens=77)
    pair = PromptPair(PLAIN, "x", "", (reading, Reading()), 1)
    (notice,) = pair.cut(2, 333)
    assert "CLIP, unlike T5, reads 77 tokens" in notice.message


def drawing_classes(model, null):
    return replace(model, prompts=ClassPrompts(4, model.device, torch.ones(4, 6), null, {"cat": 0}))


@pytest.mark.parametrize("prompt", ["dog", "4", "-1", "x" * 4000])
def test_what_names_no_class_is_refused_before_anything_is_charged_or_queued_naming_its_field(model, prompt):
    planner = planning(drawing_classes(model, 3), [])
    (spec,) = planned(planner, prompt="cat", negative_prompt="2").specs
    assert (spec.prompt, spec.negative) == ("cat", "2")
    assert planned(planner, prompt="1").specs[0].negative == ""
    for fields in ({"prompt": prompt}, {"prompt": "cat", "negative_prompt": prompt}):
        with pytest.raises(InvalidInput, match="this model draws classes, so say a number from 0 to 3") as refused:
            planned(planner, **fields)
        assert refused.value.param == [*fields][-1]
        assert len(refused.value.message) < 250


def test_a_negative_prompt_that_no_image_reads_may_be_anything(model, planner):
    fields = {"guidance_scale": 1, "negative_prompt": "(blurred"}
    for null in (3, None):
        plan = planned(planning(drawing_classes(model, null), []), prompt="cat", **fields)
        assert [warning.code for warning in plan.warnings] == ["negative_prompt_ignored"]
    plan = planned(planner, prompt_syntax="webui", **fields)
    assert [warning.code for warning in plan.warnings] == ["negative_prompt_ignored"]


def test_prompts_that_are_no_texts_have_no_syntax_and_one_chunk(model):
    for prompts, prompt in ((ClassPrompts(10, model.device), "7"), (NoPrompts(), "x" * 600)):
        reader = PromptReader(prompts)
        assert reader.syntaxes == [PLAIN]
        assert asyncio.run(reader.read(GenerateRequest(prompt=prompt))).chunks(1) == 1
        with pytest.raises(InvalidInput, match=r"^prompt_syntax: the prompts of this model are no texts"):
            asyncio.run(reader.read(GenerateRequest(prompt=prompt, prompt_syntax="webui")))
