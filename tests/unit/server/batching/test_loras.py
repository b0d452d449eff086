"""Images with LoRAs and without in one engine: each is the plain loop's on its own weights, and diffusers' with them fused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from fake_graphs import FakeGraphs
from lora_files import changed_by_hand, write_lora
from stepped_engine import Stepped

from engine import random_model
from engine.adapters import adapted, read_loras
from engine.images import levels
from engine.items import as_it_is
from engine.loading import load
from engine.model import Model
from engine.sampler import generate
from engine.unrolled import UnrolledUNet
from engine.wave_runner import WaveRunner
from registry.schedule import Schedule, Segment, teacher
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.errors import NotReady
from server.loras.adapter_set import BASE, AdapterSet
from server.loras.lora_folder import LoraFolder
from server.loras.offered_loras import OfferedLoras
from server.request_fields import LoraWish

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own
TO_V = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
TO_K = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
CONVOLUTION = "up_blocks.1.resnets.0.conv1"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"
MIXED = (Segment(partial=(1,), branch=2), Segment())


@dataclass(frozen=True)
class Site:
    """A small text-to-image model, and a folder with two LoRAs: `style` changes the UNet, `words` the text encoder too."""

    folder: Path
    loras: Path
    model: Model
    offered: OfferedLoras

    def chosen(self, **scales: float) -> AdapterSet:
        return self.offered.chosen([LoraWish(name=name, scale=scale) for name, scale in scales.items()])

    def by_plain_code(self, adapters: AdapterSet) -> Model:
        """The oracle: what `engine generate --lora` runs."""
        files = [(self.loras / f"{use.name}.safetensors", use.scale) for use in adapters.uses]
        return adapted(self.model, read_loras(self.folder, files)) if files else self.model


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    torch.set_num_threads(1)
    folder, loras = tmp_path_factory.mktemp("model") / "tiny", tmp_path_factory.mktemp("loras")
    random_model.write("tiny", folder, "float32")
    model = load(folder)
    networks = {"unet": model.network.unet, "text_encoder": model.prompts.encoder}  # type: ignore[attr-defined]
    write_lora(loras / "style.safetensors", networks, {"unet": [TO_V, CONVOLUTION]}, seed=1)
    write_lora(loras / "words.safetensors", networks, {"unet": [TO_K], "text_encoder": [Q_PROJ]}, seed=2)
    offered = LoraFolder(loras, 2**30).offered(folder, model)
    assert offered
    return Site(folder, loras, model, offered)


def engine_of(site: Site, *sets: AdapterSet) -> Stepped:
    """An engine that has these sets in memory."""
    made = {adapters: site.offered.adapted(site.model, adapters) for adapters in sets}
    return Stepped(site.model, Admission(600), max_wave_rows=8, adapted=made.__getitem__)


def finish(engine: Stepped, futures: list) -> None:
    for _ in range(300):
        if all(future.done() for future in futures):
            return
        engine.take_step()
    raise AssertionError("not done")


def spec(site: Site, seed: int, adapters: AdapterSet, guidance: float = 3.0, segments=MIXED) -> ImageSpec:
    schedule = Schedule(model=site.model.ref, solver=site.model.solver("ddim", 4), segments=segments)
    return ImageSpec(site.model.compile(schedule), "a red heart", "blue", guidance, seed, adapters=adapters)


def test_images_of_several_sets_and_of_the_model_itself_in_flight_together_are_each_the_plain_loops(site, monkeypatch):
    sets = [BASE, site.chosen(style=0.8), site.chosen(style=-0.5), site.chosen(words=1.0, style=0.8)]
    waves, plain = list[tuple[str, list[str]]](), WaveRunner.run

    def noted(self, tasks, eager=False):
        waves.append((tasks[0].need.adapters, [task.spec.adapters.key for task in tasks]))
        return plain(self, tasks, eager)

    monkeypatch.setattr(WaveRunner, "run", noted)
    engine = engine_of(site, *sets[1:])
    specs = [spec(site, seed, adapters, guidance) for seed, guidance in ((1, 1.0), (2, 3.0)) for adapters in sets]
    futures = engine.submit(specs[:1])
    for one in specs[1:]:
        futures += engine.submit([one])
    finish(engine, futures)
    pictures = list[torch.Tensor]()
    for one, future in zip(specs, futures, strict=True):
        own = site.by_plain_code(one.adapters)
        negative = own.negative(["blue"]) if one.guidance > 1 else None
        noise, condition = own.noise(one.seed)[None], own.encode(["a red heart"])
        want = levels(own.decode(generate(own.network, one.program, noise, condition, negative, one.guidance))[0])
        torch.testing.assert_close(future.result().pixels, want, rtol=0, atol=1)
        assert future.result().macs == site.model.macs.of_program(one.program, one.unet_rows)
        pictures.append(want.int())
    assert all((pictures[0] - other).abs().max() > 3 for other in pictures[1:4]), "a test that could not fail"
    assert all({key} == set(keys) for key, keys in waves), "a wave has one set"
    assert Counter(len(keys) for _, keys in waves)[2] > 4, "and images of one share it"
    assert engine._waves.slots.free == engine._waves.slots.capacity


def test_an_all_full_image_is_that_of_diffusers_pipeline_with_the_loras_fused(site, monkeypatch):
    pipeline = StableDiffusionPipeline.from_pretrained(site.folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    for name, scale in (("words", 0.7), ("style", -1.2)):
        for component in ("unet", "text_encoder"):
            changed_by_hand(getattr(pipeline, component), site.loras / f"{name}.safetensors", component, scale)
    options = {"num_inference_steps": 5, "guidance_scale": 3.0, "negative_prompt": "blue", "output_type": "np"}
    want = torch.from_numpy(pipeline("a red heart", generator=torch.Generator().manual_seed(7), **options).images[0])
    adapters = site.chosen(style=-1.2, words=0.7)
    engine, latents = engine_of(site, adapters), list[torch.Tensor]()
    decode = engine._text_and_vae.decode
    monkeypatch.setattr(engine._text_and_vae, "decode", lambda given: latents.extend(given) or decode(given))
    program = site.model.compile(teacher(site.model.ref, site.model.solver("ddim", 5)))
    finish(engine, engine.submit([ImageSpec(program, "a red heart", "blue", 3.0, 7, adapters=adapters)]))
    got = site.model.decode(latents[0][None])[0].permute(1, 2, 0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    model, noise = site.model, site.model.noise(7)[None]
    base = generate(model.network, program, noise, model.encode(["a red heart"]), model.negative(["blue"]), 3.0)
    assert (model.decode(base)[0].permute(1, 2, 0) - want).abs().max() > 0.02, "a test that could not fail"


def test_a_prompt_is_encoded_once_for_all_sets_that_do_not_change_the_text_encoder(site):
    style, other, words = site.chosen(style=1.0), site.chosen(style=2.0), site.chosen(words=1.0)
    engine = engine_of(site, style, other, words)
    finish(engine, engine.submit([spec(site, 1, BASE)]) + engine.submit([spec(site, 1, style)]))
    finish(engine, engine.submit([spec(site, 1, other)]) + engine.submit([spec(site, 1, words)]))
    assert {wording.adapters for wording in engine._text_and_vae._prompts._conditions} == {"", words.key}


def test_waves_of_all_sets_are_learnt_to_cost_alike_and_before_the_first_as_the_models_own(site):
    style, other = site.chosen(style=1.0), site.chosen(style=2.0)
    engine = engine_of(site, style, other)
    finish(engine, engine.submit([spec(site, 1, BASE)]))
    need = engine.submit([spec(site, 1, style)]) and spec(site, 1, style).program.steps[0].need
    assert engine.curve.fit(need.at(None, 1, style.key)) == engine.curve.fit(need)
    for _ in range(20):
        engine.take_step()
    assert engine.curve.fit(need.at(None, 1, style.key)) == engine.curve.fit(need.at(None, 1, other.key))
    assert len([kind for kind in engine.curve._sums if kind.adapters]) == 2, "full and partial steps, of any set"


def test_an_image_whose_set_is_not_in_memory_is_refused_and_nothing_is_queued(site):
    engine = Stepped(site.model, Admission(600), max_wave_rows=4)
    with pytest.raises(NotReady) as caught:
        engine.submit([spec(site, 1, site.chosen(style=1.0))])
    assert caught.value.param == "loras"
    assert not engine._queue
    assert engine._admission.seconds == 0


def test_waves_with_loras_run_eagerly_beside_captured_ones_and_are_the_same(site):
    """As on a GPU, where the model's own waves are graphs, padded to a few sizes, and its features lie channels last."""
    model = load(site.folder)
    compiled = replace(model, network=UnrolledUNet(model.network.unet, as_it_is))
    assert compiled.network.channels_last
    style, graphs = site.chosen(style=0.8), FakeGraphs()
    made = {style: site.offered.adapted(compiled, style)}
    engine = Stepped(compiled, Admission(600), max_wave_rows=8, graphs=graphs, adapted=made.__getitem__)
    engine.warm_up([spec(site, 1, BASE).program.schedule])
    captured = len(graphs.captures)
    specs = [spec(site, seed, adapters) for seed in (1, 2, 3) for adapters in (BASE, style)]
    futures = [future for one in specs for future in engine.submit([one])]
    before = graphs.replays
    finish(engine, futures)
    assert graphs.replays > before, "the model's own"
    assert len(graphs.captures) == captured
    for one, future in zip(specs, futures, strict=True):
        own = site.by_plain_code(one.adapters)
        condition, negative = own.encode(["a red heart"]), own.negative(["blue"])
        want = levels(own.decode(generate(own.network, one.program, own.noise(one.seed)[None], condition, negative, 3.0))[0])
        torch.testing.assert_close(future.result().pixels, want, rtol=0, atol=1)
