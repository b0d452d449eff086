"""Images that start from another one: as the plain loop makes them, in any company, encoded once, and billed for what ran."""

from __future__ import annotations

from dataclasses import replace

import model_folders
import pytest
import torch
from server_model import small_model

from engine.image_size import ImageSize
from engine.images import levels
from engine.loading import load
from engine.program import Program
from engine.sampler import generate
from engine.source import EncodedSource, SourceImage, kept_of, picture_of, pictured
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import Edit, ImageSpec
from server.batching.model_engine import ModelEngine
from server.batching.source_cache import SourceCache
from server.telemetry import metrics

SEGMENTS = (Segment(partial=(1,), branch=2), Segment(), Segment(partial=(1,), branch=1))


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def engine(model):
    return ModelEngine(model, Admission(max_seconds=600), max_wave_rows=4)


def edit_of(number: int, strength: float, masked: bool) -> Edit:
    pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    painted = torch.zeros(8, 8, dtype=torch.bool)
    painted[2:, 3:] = True
    return Edit(SourceImage(pixels, painted if masked else None), strength, f"{number}", f"{number} {masked}", "", "")


def whole(model) -> Program:
    return model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 6), segments=SEGMENTS))


def spec(model, seed: int, edit: Edit | None = None, guidance: float = 2.0, **fields) -> ImageSpec:
    program = edit.program(whole(model)) if edit else whole(model)
    keeps = edit is not None and edit.source.painted is not None
    return ImageSpec(program, "a", "", guidance, seed, tier="edits", edit=edit, keeps=keeps, **fields)


def finish(engine, futures):
    at_work = None
    for _ in range(300):
        if all(future.done() for future in futures):
            return
        at_work = engine.step(at_work)
    raise AssertionError("not done")


def counted(kind: str, metric=metrics.finished_steps_total) -> float:
    return float(metric.labels(kind, "edits")._value.get())


def looked_up(cache: str) -> float:
    return float(metrics.source_latents_total.labels(cache)._value.get())


def plain(model, one: ImageSpec) -> torch.Tensor:
    source = None
    if one.edit:
        kept = kept_of(model, one.edit.source) if one.keeps else None
        source = EncodedSource(model.encode_image(one.edit.source.whole)[None], None if kept is None else kept[None])
    negative = model.negative([""]) if one.guidance > 1 else None
    noise = model.noise(one.seed)[None]
    latent = generate(model.network, one.program, noise, model.encode(["a"]), negative, one.guidance, source=source)
    made = levels(model.decode(latent)[0])
    return one.edit.source.shown_in(made) if one.edit else made


def test_edits_and_other_images_share_waves_and_each_is_the_plain_loops(model, engine):
    edits = [None, edit_of(1, 0.5, False), edit_of(1, 0.7, True), edit_of(2, 1.0, True), None]
    specs = [spec(model, seed, edit, guidance) for seed, edit in enumerate(edits) for guidance in (1.0, 2.0)]
    planned = {kind: counted(kind, metrics.planned_steps_total) for kind in ("full", "partial", "null")}
    ran = {kind: counted(kind) for kind in planned}
    futures = engine.submit(specs)
    cancelled = engine.submit([spec(model, 7, edit_of(3, 0.9, True))])
    engine.step(None)
    cancelled[0].cancel()
    finish(engine, futures)
    for one, future in zip(specs, futures, strict=True):
        result = future.result()
        torch.testing.assert_close(result.pixels, plain(model, one), rtol=0, atol=1)
        assert result.macs == model.macs.of_program(one.program, one.unet_rows)
        assert sum(result.steps.values()) == 6 - one.program.steps[0].index
        if one.keeps:
            painted = one.edit.source.painted
            assert torch.equal(result.pixels[~painted], one.edit.source.pixels[~painted]), "what stays is the source's own"
    for kind in planned:
        assert counted(kind) - ran[kind] == counted(kind, metrics.planned_steps_total) - planned[kind] > 0
    assert engine._waves.slots.free == engine._waves.slots.capacity


def test_the_same_edit_twice_is_the_same_image_and_encodes_nothing_the_second_time(model, engine):
    first = engine.submit([spec(model, 1, edit_of(9, 0.5, True))])
    finish(engine, first)
    missed, hit = looked_up("miss"), looked_up("hit")
    again = engine.submit([spec(model, seed, edit_of(9, strength, True)) for seed, strength in ((1, 0.5), (2, 0.9))])
    finish(engine, again)
    assert torch.equal(first[0].result().pixels, again[0].result().pixels)
    assert (looked_up("miss"), looked_up("hit")) == (missed, hit + 2), "nor at another strength or seed"


def test_less_strength_takes_fewer_macs_and_all_of_it_what_a_text_takes(model):
    costs = [sum(step.kind == "full" for step in spec(model, 1, edit_of(1, s, False)).program.steps) for s in (0.2, 0.5, 1.0)]
    assert costs == sorted(costs)
    whole_macs = model.macs.of_program(whole(model), 1)
    assert model.macs.of_program(spec(model, 1, edit_of(1, 1.0, False)).program, 1) == whole_macs
    assert model.macs.of_program(spec(model, 1, edit_of(1, 0.3, False)).program, 1) < whole_macs / 2


def test_previews_show_what_stays_too(model, engine):
    shown = []
    one = spec(model, 1, edit_of(5, 1.0, True), previews=2)
    finish(engine, engine.submit([one], lambda _, i, pixels: shown.append(pixels)))
    assert len(shown) == 2
    for pixels in shown:
        assert torch.equal(pixels[~one.edit.source.painted], one.edit.source.pixels[~one.edit.source.painted])


def test_an_image_that_cannot_be_encoded_fails_alone(model, engine, monkeypatch):
    encode = type(model).encode_image

    def poisoned(self, image):
        if image.min() == image.max():
            raise FloatingPointError("the latent of the image is not finite")
        return encode(self, image)

    monkeypatch.setattr(type(model), "encode_image", poisoned)
    flat = replace(edit_of(1, 0.5, False), source=SourceImage(torch.zeros(8, 8, 3, dtype=torch.uint8)), image_key="flat")
    bad, good = engine.submit([spec(model, 1, flat), spec(model, 1, edit_of(6, 0.5, False))])
    finish(engine, [bad, good])
    assert "encoding" in str(bad.exception())
    assert good.result().pixels.shape == (8, 8, 3)
    assert engine._waves.slots.free == engine._waves.slots.capacity


def test_a_mask_that_there_is_no_memory_for_is_refused_by_name_and_waits_for_nothing(model):
    engine = ModelEngine(model, Admission(max_seconds=600), 4, cache_bytes=2 * model.slot_bytes())
    with pytest.raises(InvalidInput, match="FLEXI_CACHE_MIB") as refused:
        engine.submit([spec(model, 1, edit_of(1, 0.5, True))])
    assert refused.value.param == "mask"
    finish(engine, engine.submit([spec(model, 1, edit_of(1, 0.5, True), guidance=1.0)]))


def test_the_cache_is_bounded_in_bytes_and_drops_what_was_not_used(model):
    cache, latent = SourceCache(3 * 1024), torch.zeros(256)  # of a KiB
    for key in "abc":
        cache.put(key, latent)
    assert cache.get("a") is not None
    cache.put("d", latent)
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert metrics.source_cache_bytes._value.get() == 3 * 1024
    cache.put("huge", torch.zeros(10_000))
    assert cache.get("huge") is None


def test_an_inpainting_unet_is_shown_the_picture_in_its_slots_at_every_size(tmp_path, tiny_config):
    """Texts, which it paints everywhere, edits with a mask and without, and another size, in the same waves."""
    model = load(model_folders.inpainting(tmp_path / "inpainting", tiny_config))
    wide = ImageSize(16, 32)
    engine = ModelEngine(model, Admission(max_seconds=600), max_wave_rows=8, others=(wide,))
    specs = [
        replace(spec(model, seed, edit, guidance), keeps=False, size=size)
        for seed, (edit, size) in enumerate(
            [(None, None), (larger(1, 16, 16), None), (larger(2, 16, 32), wide), (None, wide)],
        )
        for guidance in (1.0, 2.0)
    ]
    futures = engine.submit(specs)
    finish(engine, futures)
    for one, future in zip(specs, futures, strict=True):
        condition, source = model.encode(["a"], size=one.size), None
        negative = model.negative([""], one.size) if one.guidance > 1 else None
        if one.edit:
            picture = picture_of(model, one.edit.source, model.encode_image(one.edit.source.around))
            condition = pictured(model, condition, picture)
            negative = negative and pictured(model, negative, picture)
            source = EncodedSource(model.encode_image(one.edit.source.whole)[None])
        noise = model.noise(one.seed, one.size)[None]
        latent = generate(model.network, one.program, noise, condition, negative, one.guidance, source=source)
        want = levels(model.decode(latent)[0])
        if one.edit:
            want = one.edit.source.shown_in(want)
        torch.testing.assert_close(future.result().pixels, want, rtol=0, atol=1)


def larger(number: int, height: int, width: int) -> Edit:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    painted = torch.zeros(height, width, dtype=torch.bool)
    painted[4:, 3:] = True
    return Edit(SourceImage(pixels, painted), 0.6, f"large {number}", f"large {number} masked", "", "")
