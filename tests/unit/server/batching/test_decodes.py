"""Images and previews that are not finite: decoded again in a wider type, or failed alone; on a CPU and behind a device."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import model_folders
import pytest
import torch
from server_model import small_model

from engine.decoders import Autoencoder, Decoded, to_levels
from engine.device import HostFence, HostLane
from engine.model import Model
from engine.unrolled import UnrolledUNet
from engine.waves import Waves
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine
from server.batching.prompt_cache import PromptCache, Wording
from server.batching.warm_up import warm_up
from server.errors import GenerationFailed
from server.telemetry import metrics

OVERFLOWS, HOPELESS = 1e6, 1e38  # what a latent is multiplied with to be too large for float16, and for float32


@dataclass(frozen=True)
class DistantModel(Model):
    """Its pixels are on their way until a fence behind them is passed: who looks before sees images that are not finite."""

    coming: list[tuple[Decoded, Decoded]] = field(default_factory=list)

    def decode_later(self, latents):
        made = super().decode_later(latents)
        self.coming.append((Decoded(*map(torch.zeros_like, made)), made))
        return self.coming[-1][0]


class DistantUNet(UnrolledUNet):
    """A UNet on a device that is not done before the host waits for it, or has asked three times."""

    def fence(self):
        return DistantFence(self.coming)

    def lane(self):
        lane = HostLane()
        lane.fence = self.fence
        return lane


class DistantFence(HostFence):
    def __init__(self, coming):
        super().__init__()
        self.coming, self.behind, self.asked = coming, len(coming), 0

    def done(self):
        self.asked += 1
        if self.asked == 3:
            self.wait()
        return self.asked >= 3

    @torch.inference_mode()
    def wait(self):
        self.asked = 3
        for there, made in self.coming[: self.behind]:
            for tensor, value in zip(there, made, strict=True):
                tensor.copy_(value)


@pytest.fixture(scope="module")
def small(tiny):
    return small_model(tiny)


@pytest.fixture(params=["cpu", "distant"])
def model(request, tiny, small):
    """The small model with a real autoencoder in float16."""
    torch.manual_seed(0)
    parts = {part.name: getattr(small, part.name) for part in fields(Model)}
    parts["decoder"] = Autoencoder(model_folders.kl().half().eval().requires_grad_(False))
    if request.param == "cpu":
        model = Model(**parts)
    else:
        model = DistantModel(**parts | {"network": DistantUNet(tiny)})
        model.network.coming = model.coming
    vars(model)["macs"] = small.macs  # counted once
    metrics.decoder_upcast.set(0)
    return model


@pytest.fixture
def engine(model):
    return ModelEngine(model, Admission(max_seconds=60), max_wave_rows=4)


@pytest.fixture
def enlarge(engine, monkeypatch):
    """Call with {seed: factor}: the latents of these images, and of their previews, are multiplied."""

    def by(factors, what="latent"):
        slots = engine._waves.slots.at()
        plain = getattr(slots, what)

        def enlarged(slot):
            seeds = [task.spec.seed for task in engine._images if task.slots and task.slots[0] == slot]
            return (plain(slot) * factors.get(*seeds, 1.0)).clamp(-3e38, 3e38)  # finite itself

        monkeypatch.setattr(slots, what, enlarged)

    return by


def spec(model, seed, **options) -> ImageSpec:
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * 4)
    return ImageSpec(model.compile(schedule), "a", "", 2.0, seed, **options)


def finish(engine, futures):
    at_work = None
    for _ in range(50):
        at_work = engine.step(at_work)
        if all(future.done() for future in futures):
            return
    raise AssertionError("not done")


def made(model, latent):
    """What a decoder that was bfloat16 from the start makes of these latents (c, h, w)."""
    torch.manual_seed(0)
    vae = model_folders.kl().half().bfloat16().eval().requires_grad_(False)
    return to_levels(Autoencoder(vae), latent[None]).images[0]


def watched(model, monkeypatch):
    """Latents that are decoded once more, in the order of the calls."""
    seen, plain = [], type(model).decode_again

    def decode(self, latents):
        seen.append(latents)
        return plain(self, latents)

    monkeypatch.setattr(type(model), "decode_again", decode)
    return seen


def is_a_picture(pixels):
    """What is not finite is black."""
    return pixels.dtype == torch.uint8 and pixels.shape == (16, 16, 3) and pixels.float().std() > 1


def upcast():
    return metrics.decoder_upcast.collect()[0].samples[0].value


def test_an_image_that_overflows_is_decoded_in_a_wider_type_and_no_other_is(model, engine, enlarge, monkeypatch, caplog):
    enlarge({2: OVERFLOWS})
    assert upcast() == 0
    again = watched(model, monkeypatch)
    futures = engine.submit([spec(model, seed) for seed in (1, 2)])
    finish(engine, futures)
    (latents,) = again
    assert len(latents) == 1
    monkeypatch.undo()
    assert torch.equal(futures[1].result().pixels, made(model, latents[0]))
    assert is_a_picture(futures[0].result().pixels)
    assert upcast() == 1
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the decoder overflows in float16: from now on it runs in bfloat16"]


def test_the_next_images_are_decoded_in_the_wider_type_at_once(model, engine, enlarge, monkeypatch):
    enlarge({1: OVERFLOWS, 2: OVERFLOWS, 3: OVERFLOWS})
    finish(engine, engine.submit([spec(model, 1)]))
    again = watched(model, monkeypatch)
    futures = engine.submit([spec(model, seed) for seed in (2, 3)])
    finish(engine, futures)
    assert all(is_a_picture(future.result().pixels) for future in futures)
    assert again == []


def test_what_overflows_in_float32_too_fails_alone(model, engine, enlarge):
    enlarge({2: HOPELESS, 3: OVERFLOWS})
    futures = engine.submit([spec(model, seed) for seed in (1, 2, 3)])
    finish(engine, futures)
    for good in (futures[0], futures[2]):
        assert is_a_picture(good.result().pixels)
    with pytest.raises(GenerationFailed, match="decoding this image failed: the pixels are not finite"):
        futures[1].result()
    assert not engine._images


def test_a_preview_that_overflows_is_decoded_in_a_wider_type(model, engine, enlarge):
    enlarge({5: OVERFLOWS}, "clean")
    seen = []
    futures = engine.submit([spec(model, 5, previews=3)], lambda *preview: seen.append(preview))
    finish(engine, futures)
    assert [number for _, number, _ in seen] == [0, 1, 2]
    assert all(is_a_picture(pixels) for _, _, pixels in seen)
    assert upcast() == 1


def test_a_preview_that_stays_not_finite_is_left_out(model, engine, enlarge):
    enlarge({5: HOPELESS}, "clean")
    seen = []
    futures = engine.submit([spec(model, 5, previews=3)], lambda *preview: seen.append(preview))
    finish(engine, futures)
    assert seen == []
    assert is_a_picture(futures[0].result().pixels)


def test_a_latent_that_is_not_finite_leaves_the_decoder_as_it_is(model, engine, enlarge):
    enlarge({2: float("nan")})
    futures = engine.submit([spec(model, seed) for seed in (1, 2)])
    finish(engine, futures)
    assert futures[0].exception() is None
    with pytest.raises(GenerationFailed, match="denoising this image failed: the latent is not finite"):
        futures[1].result()
    assert not model.decoder.overflowed


def test_a_decoder_that_cannot_be_upcast_fails_the_image_and_no_other(model, engine, enlarge, monkeypatch):
    plain = torch.nn.Module.to

    def exhausted(module, dtype):
        if dtype == torch.bfloat16:
            raise torch.OutOfMemoryError("no memory")
        return plain(module, dtype)

    monkeypatch.setattr(torch.nn.Module, "to", exhausted)
    enlarge({2: OVERFLOWS})
    futures = engine.submit([spec(model, seed) for seed in (1, 2)])
    finish(engine, futures)
    assert futures[0].exception() is None
    with pytest.raises(GenerationFailed, match="decoding this image failed"):
        futures[1].result()
    assert not engine._queue._closed


def test_a_warm_up_finds_out_before_anybody_asks(model, caplog):
    model.decoder.vae.decoder.conv_out.weight.mul_(6e4)
    warm_up(model, Waves(model.network, model.slots(4)), ())
    assert model.decoder.overflowed
    assert upcast() == 0
    ModelEngine(model, Admission(max_seconds=60), max_wave_rows=4)
    assert upcast() == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"], "of the decoder, once"


def test_a_warm_up_says_where_no_type_is_wide_enough(model, caplog):
    model.decoder.vae.decoder.conv_out.weight.fill_(float("inf"))
    warm_up(model, Waves(model.network, model.slots(4)), ())
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["the pixels of the warm-up are not finite, decoded in float32 either: images are going to fail"]


def test_a_condition_that_is_not_finite_fails_its_image_alone_and_is_not_kept(model, engine, monkeypatch):
    ruined, plain = [Wording("a")], PromptCache.of

    def of(self, prompts, models):
        conditions = plain(self, prompts, models)
        for prompt in ruined:
            if prompt in conditions:
                conditions[prompt].context.fill_(float("nan"))  # in the cache, too
        return conditions

    monkeypatch.setattr(PromptCache, "of", of)
    futures = engine.submit([spec(model, 1), replace(spec(model, 2), prompt="b")])
    finish(engine, futures)
    assert futures[1].exception() is None
    with pytest.raises(GenerationFailed, match="the latent is not finite"):
        futures[0].result()
    ruined.clear()  # say the text encoder was at fault once
    futures = engine.submit([spec(model, 1)])
    finish(engine, futures)
    assert is_a_picture(futures[0].result().pixels)
