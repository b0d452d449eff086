"""Serving a latent consistency model: the guidance scale is a part of each image's condition, and is billed as one row."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from memory_store import MemoryStore
from server_model import small_model
from stepped_engine import Stepped

from engine.fresh_noise import stacked
from engine.images import levels
from engine.sampler import generate
from registry.catalog import Catalog
from registry.corrections import Correction, ScaledCorrections
from registry.schedule import Schedule, Segment, Validated
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.batching.admission import Admission
from server.experiments.active import ActiveExperiments
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "fast", None


@pytest.fixture(scope="module")
def model(tiny_config):
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**tiny_config, time_cond_proj_dim=6).eval().requires_grad_(False)
    return replace(small_model(unet), own_solver="lcm", few_steps=4, usual_guidance=8.5)


@pytest.fixture(scope="module")
def planner(model):
    """Its tier `fast` has corrections of two scales, and was validated from one to the other."""
    solver, segments = model.solver("lcm", 4), (Segment(partial=(1,), branch=2),) * 2
    fitted = tuple(
        ScaledCorrections(guidance=scale, corrections=(Correction(output=0.01 * scale),) * 4) for scale in (2.0, 9.0)
    )
    where = Validated(sizes=(model.image_size,), guidance=(2.0, 9.0), default_guidance=9.0)
    schedule = Schedule(model=model.ref, solver=solver, segments=segments, scaled_corrections=fitted, validated=where)
    catalog = Catalog(MemoryStore(), model.ref.name, author="test")
    catalog.publish(schedule)
    catalog.promote("fast", schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 4)
    assert Watch(schedules, lambda: catalog).refresh()
    return Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.0, Settings())


def planned(planner, **fields):
    return asyncio.run(planner.plan(GenerateRequest(**{"prompt": "a", "seed": 5} | fields), "id-1", ANONYMOUS))


def codes(plan):
    return [warning.code for warning in plan.warnings]


def test_a_request_gets_its_scale_at_the_price_of_one_row(model, planner):
    for asked, scale in ((None, 9.0), (4.0, 4.0), (0.0, 1.0)):
        plan = planned(planner, guidance_scale=asked)
        assert (plan.specs[0].guidance, plan.specs[0].unet_rows) == (scale, 1)
        assert plan.macs == 2 * model.macs.full.macs + 2 * model.macs.partial[2].macs
        assert codes(plan) == (["guidance_not_validated"] if scale == 1 else [])
    assert planned(planner, tier="reference").specs[0].guidance == 9.0, "what the default tier has"


def test_a_negative_prompt_is_said_to_have_no_effect_at_any_scale(planner):
    for scale in (1.0, 5.0):
        (warning,) = (w for w in planned(planner, guidance_scale=max(scale, 2), negative_prompt="blue " * 20).warnings)
        assert (warning.code, "takes guidance_scale as an input" in warning.message) == ("negative_prompt_ignored", True)


def test_images_of_several_scales_in_one_wave_are_the_plain_loops(model, planner):
    """Noise between the steps and corrections at the scale included; what ran is what was planned."""
    wanted = [planned(planner, guidance_scale=scale, seed=seed) for seed, scale in ((5, 2.0), (5, 6.5), (6, 9.0))]
    wanted.append(planned(planner, tier="reference", guidance_scale=3.0))
    engine = Stepped(model, Admission(max_seconds=60), max_wave_rows=4)
    futures = [engine.submit(list(plan.specs))[0] for plan in wanted]
    for _ in range(60):
        if not all(future.done() for future in futures):
            engine.take_step()
    pictures = []
    for plan, future in zip(wanted, futures, strict=True):
        (spec,), result = plan.specs, future.result(timeout=0)
        fresh, condition = stacked([model.noises(spec.seed)]), model.encode([spec.prompt], spec.guidance)
        latent = generate(model.network, spec.program, fresh(0), condition, None, spec.guidance, fresh)
        torch.testing.assert_close(result.pixels, levels(model.decode(latent)[0]), rtol=0, atol=1)
        assert result.macs == plan.macs
        pictures.append(result.pixels)
    assert (pictures[0] != pictures[1]).any(), "the scale plays no part"
