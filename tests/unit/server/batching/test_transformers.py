"""Transformers in the server: their branches are pairs there too, and texts that T5 reads are of any length in a wave."""

from __future__ import annotations

from pathlib import Path

import model_folders
import pytest
import torch
import two_streams

from engine.image_size import ImageSize
from engine.images import levels
from engine.loading import load
from engine.policy import FCFS
from engine.sampler import generate
from engine.waves import Waves
from registry.schedule import Blocks, Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine
from server.batching.warm_up import warm_up


def test_the_first_waves_are_of_every_pair_that_is_in_force(tmp_path: Path) -> None:
    """And on the model's own plain solver, which is not DDIM."""
    torch.set_num_threads(1)
    model = load(model_folders.flow_dit(tmp_path / "flow-dit"))
    pairs = {Blocks(1, 0), Blocks(0, 2)}
    macs, _ = warm_up(model, Waves(model.network, model.slots(4), FCFS(4)), pairs)
    rows = 2 + 1  # with guidance, and without
    assert macs == rows * (2 * model.macs.full.macs + sum(model.macs.partial[pair].macs for pair in pairs))


FOLDERS = {
    "pixart": lambda folder: model_folders.pixart(folder, num_layers=3, use_additional_conditions=True),
    "sd3": two_streams.sd3,
    "flux": two_streams.flux,  # whose noise levels follow the size
}


@pytest.mark.parametrize("family", FOLDERS)
def test_images_of_several_texts_and_sizes_are_the_plain_loops(tmp_path: Path, family: str) -> None:
    torch.set_num_threads(1)
    wide = ImageSize(16, 24)
    model = load(FOLDERS[family](tmp_path / family))
    segments = (Segment.reusing(Blocks(1, 0), (1, 2)), Segment.reusing(Blocks(0, 2), (1,)))
    solver = model.solver("dpmsolver++" if family == "pixart" else "euler", 6)
    schedule = Schedule(model=model.ref, solver=solver, segments=segments)
    engine = ModelEngine(model, Admission(max_seconds=600), max_wave_rows=6, others=(wide,))
    texts = [("a Red cat", "", None), ("", "a dog", wide), ("a blue dog and a red cat", "a dog", None), ("a cat", "", wide)]
    programs = {size: model.compile(schedule, size) for size in (None, wide)}
    specs = [
        ImageSpec(programs[size], text, away, 3.0, seed, size, embedded=model.embeds_guidance)
        for seed, (text, away, size) in enumerate(texts)
    ]
    futures, at_work = engine.submit(specs), None
    for _ in range(100):
        at_work = engine.step(at_work)
        if all(future.done() for future in futures):
            break
    rows = model.rows(3.0)
    for spec, future in zip(specs, futures, strict=True):
        condition = model.encode([spec.prompt], 3.0, spec.size)
        away = model.negative([spec.negative], spec.size) if rows == 2 else None
        noise = model.noise(spec.seed, spec.size)[None]
        latent = generate(model.network, spec.program, noise, condition, away, 3.0)
        torch.testing.assert_close(future.result(0).pixels, levels(model.decode(latent)[0]), rtol=0, atol=1)
        assert future.result().macs == model.macs_at(spec.size).of_program(spec.program, rows)
