"""A model without its weights tells all that the loaded one tells, and a loaded one can drop them."""

from __future__ import annotations

import pytest
from places import ROOT

from engine.loading import load
from registry.schedule import Schedule, Segment


@pytest.mark.parametrize("name", ["emoji64", "glyphs-ldm", "glyphs-ddpm"])
def test_a_model_without_weights_is_planned_like_the_loaded_one(name):
    folder = ROOT / "models" / name
    loaded, told = load(folder), load(folder, weights=False)
    assert {tensor.device.type for tensor in told.network.unet.parameters()} == {"meta"}
    assert told.ref == loaded.ref
    assert (told.latent_shape, told.image_size, told.fixed_size, told.usual_guidance) == (
        loaded.latent_shape,
        loaded.image_size,
        loaded.fixed_size,
        loaded.usual_guidance,
    )
    assert told.weight_bytes == loaded.weight_bytes > 10**6
    assert told.slot_bytes() == loaded.slot_bytes()
    assert told.macs == loaded.macs
    text = "word " * 100 if loaded.prompts.reads_texts else loaded.prompts.sample
    assert told.prompts.cut(text) == loaded.prompts.cut(text)
    half = Schedule(model=told.ref, solver=told.solver("ddim", 4), segments=(Segment(partial=(1,), branch=2), Segment()))
    assert told.compile(half) == loaded.compile(half)
    loaded.drop_weights()
    assert {tensor.device.type for network in loaded._networks for tensor in network.parameters()} <= {"meta"}
    assert loaded.weight_bytes == told.weight_bytes
    assert loaded.compile(half) == told.compile(half)
