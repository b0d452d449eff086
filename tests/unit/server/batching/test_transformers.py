"""A transformer of flow matching in the server: its branches are pairs there too."""

from __future__ import annotations

from pathlib import Path

import model_folders
import torch

from engine.loading import load
from engine.policy import FCFS
from engine.waves import Waves
from registry.schedule import Blocks
from server.batching.warm_up import warm_up


def test_the_first_waves_are_of_every_pair_that_is_in_force(tmp_path: Path) -> None:
    """And on the model's own plain solver, which is not DDIM."""
    torch.set_num_threads(1)
    model = load(model_folders.flow_dit(tmp_path / "flow-dit"))
    pairs = {Blocks(1, 0), Blocks(0, 2)}
    macs, _ = warm_up(model, Waves(model.network, model.slots(4), FCFS(4)), pairs)
    rows = 2 + 1  # with guidance, and without
    assert macs == rows * (2 * model.macs.full.macs + sum(model.macs.partial[pair].macs for pair in pairs))
