"""Prompts of several lengths in one engine: each image is the plain loop's with its own context, and is billed as it ran."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from fake_graphs import FakeGraphs
from server_model import small_model

from engine.image_size import ImageSize
from engine.images import levels
from engine.sampler import generate
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from server.batching import prompt_cache
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.memory import slots_within
from server.batching.model_engine import ModelEngine
from server.batching.prompt_cache import PromptCache, Wording
from server.telemetry import metrics

WIDE = ImageSize(8, 16)
MOST = 3


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


def spec(model, seed, chunks, guidance=2.0, **fields) -> ImageSpec:
    segments = (Segment(partial=(1,), branch=1 + seed % 3), Segment())
    program = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments))
    return ImageSpec(program, "a", "", guidance, seed, tier="lengths", chunks=chunks, **fields)


def finish(engine, futures):
    at_work = None
    for _ in range(200):
        if all(future.done() for future in futures):
            return
        at_work = engine.step(at_work)
    raise AssertionError("not done")


def counted(counter, label) -> float:
    samples = [sample for sample in counter.collect()[0].samples if sample.name.endswith("_total")]
    return sum(sample.value for sample in samples if label in sample.labels.values())


@pytest.mark.parametrize("graphs", [None, FakeGraphs()], ids=["eager", "graphs"])
def test_images_of_all_lengths_and_sizes_are_the_plain_loops_and_their_macs_are_those_exported(model, graphs):
    """In random company, in which waves of all lengths take turns. Captured ones begin with the second round."""
    engine = ModelEngine(model, Admission(600), max_wave_rows=4, graphs=graphs, others=(WIDE,), chunks=MOST)
    before, threes = counted(metrics.macs_total, "lengths"), counted(metrics.prompt_chunks_total, "3")
    specs = [spec(model, seed, 1 + seed % 3, 1.0 + seed // 3, size=WIDE if seed % 2 else None) for seed in range(6)]
    random.Random(0).shuffle(specs)
    for _ in range(2 if graphs else 1):
        futures = engine.submit(specs)
        finish(engine, futures)
    for one, future in zip(specs, futures, strict=True):
        result, noise = future.result(), model.noise(one.seed, one.size)[None]
        negative = model.negative([""], chunks=one.chunks) if one.guidance > 1 else None
        condition = model.encode(["a"], chunks=one.chunks)
        latent = generate(model.network, one.program, noise, condition, negative, one.guidance)
        torch.testing.assert_close(result.pixels, levels(model.decode(latent)[0]), rtol=0, atol=1)
        assert result.macs == model.macs_at(one.size, one.chunks).of_program(one.program, one.unet_rows)
    rounds = 2 if graphs else 1
    assert counted(metrics.macs_total, "lengths") - before == rounds * sum(future.result().macs for future in futures)
    assert counted(metrics.prompt_chunks_total, "3") - threes == 2 * rounds
    assert engine._waves.slots.free == engine._waves.slots.capacity
    if graphs:
        assert {need.chunks for need, _ in engine._waves._runner._captured} == {1, 2, 3}


def test_a_longer_prompt_is_predicted_to_take_longer_and_makes_another_image(model):
    engine = ModelEngine(model, Admission(600), max_wave_rows=4, chunks=MOST)
    engine._admission.measured(1000, 1e-3)
    program = spec(model, 0, 1).program
    one, three = (engine.forecast(program, 2, 1, "lengths", None, chunks) for chunks in (1, 3))
    assert three > one > 0
    futures = engine.submit([spec(model, 0, chunks) for chunks in (1, 2)])
    finish(engine, futures)
    short, long = (future.result().pixels.int() for future in futures)
    assert (short - long).abs().max() > 1


def test_a_prompt_is_kept_by_its_text_its_length_and_its_syntax(model):
    asked = []

    def encode(by, texts, chunks, syntax):
        asked.append((texts, chunks, syntax))
        return by.encode(texts, chunks=chunks, syntax=syntax)

    cache = PromptCache(encode)
    wordings = [Wording("a"), Wording("b"), Wording("a", 2), Wording("a", 2, "webui"), Wording("a")]
    made = cache.of(wordings, {"": model})
    assert [made[wording].context.shape[1] for wording in wordings] == [3, 3, 6, 6, 3]
    assert asked == [(["a", "b"], 1, "plain"), (["a"], 2, "plain"), (["a"], 2, "webui")]
    assert cache.of(wordings, {"": model}).keys() == made.keys()
    assert len(asked) == 3
    cache.forget(Wording("a", 2))
    cache.of(wordings, {"": model})
    assert asked[3:] == [(["a"], 2, "plain")]


def test_kept_prompts_are_bounded_in_bytes_the_longest_unused_first(model, monkeypatch):
    asked = []

    def encode(by, texts, chunks, syntax):
        asked.extend(texts)
        return by.encode(texts, chunks=chunks, syntax=syntax)

    size = model.encode(["a"]).context.nbytes
    monkeypatch.setattr(prompt_cache, "KEPT_BYTES", 2 * size)
    cache = PromptCache(encode)
    for text in "abac":  # c takes b's place
        cache.of([Wording(text)], {"": model})
    assert asked == ["a", "b", "c"]
    made = cache.of([Wording("b"), Wording("a", 3)], {"": model})
    assert made[Wording("a", 3)].context.nbytes > 2 * size, "it fits in nowhere, and is made all the same"
    assert asked[3:] == ["b", "a"]


def test_memory_too_small_for_an_image_with_the_longest_prompt_is_refused_by_it(model):
    longest = model.slot_bytes(None, MOST)
    assert longest - model.slot_bytes() == pytest.approx(4 * 2 * 3 * 6, abs=64), (
        "two chunks more, to where the next part begins"
    )
    with pytest.raises(InvalidInput, match="an image of 8x8 and prompts of 3 chunks with guidance") as caught:
        slots_within(model, 16, 2 * model.slot_bytes() - 64, (), MOST)
    assert caught.value.param == "cache_mib"
    slots = slots_within(model, 8, None, (WIDE,), MOST)
    assert slots.most(None) >= 8
    assert slots.most(WIDE, MOST) >= 2


def test_idle_work_of_another_length_gives_up_its_place(model):
    engine = ModelEngine(model, Admission(600), 4, cache_bytes=3 * model.slot_bytes(None, MOST), chunks=MOST)
    (background,) = engine.submit([replace(spec(model, 1, MOST), tier="shadow", idle=True)])
    engine.step(None)
    clients = engine.submit([spec(model, seed, 1) for seed in range(4)])
    finish(engine, [background, *clients])
    (alone,) = engine.submit([spec(model, 1, MOST)])
    finish(engine, [alone])
    torch.testing.assert_close(background.result().pixels, alone.result().pixels, rtol=0, atol=1)
