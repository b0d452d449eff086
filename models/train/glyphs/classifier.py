"""Train the classifier on the training families; print how often it is right on the families held out.

python -m models.train.glyphs.classifier --out runs/features --minutes 5
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch.nn import functional as F

from evaluation.classifier import KIND, WEIGHTS, Network
from models.train import loop
from models.train.glyphs import CLASSES, data
from registry.commands.command_line import run_command

SIDE = 32
WIDTHS, GROUPS = (16, 32, 64, 96), 8


def moved(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (b, 1, h, w), white outside, each moved by up to 2 pixels and scaled by up to a tenth; a little noise."""
    count = len(images)
    scale = 1 + 0.2 * (torch.rand(count, generator=rng) - 0.5)
    shift = (torch.rand(count, 2, generator=rng) - 0.5) * 8 / images.shape[-1]
    turns = torch.zeros(count, 2, 3)
    turns[:, 0, 0] = turns[:, 1, 1] = scale
    turns[:, :, 2] = shift
    grid = F.affine_grid(turns, list(images.shape), align_corners=False)
    out = F.grid_sample(images - 1, grid, align_corners=False) + 1
    return out + 0.1 * torch.rand(count, 1, 1, 1, generator=rng) * torch.randn(out.shape, generator=rng)


@torch.no_grad()
def accuracy(network: Network, glyphs: data.Glyphs) -> tuple[float, float]:
    """Share of the pictures that are taken for what they are, and share where case does not count."""
    network.eval()
    made = torch.cat([network(glyphs.batch(part, SIDE))[1].argmax(1) for part in torch.arange(len(glyphs)).split(256)])
    folded = torch.tensor([CLASSES.index(c.upper()) for c in CLASSES])
    exact = made == glyphs.labels
    return float(exact.float().mean()), float((folded[made] == folded[glyphs.labels]).float().mean())


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, the folder of features")],
    glyphs: Annotated[Path, typer.Option(help="folder made by models.train.glyphs.draw")] = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 128,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 2e-3,
    seed: int = 0,
) -> None:
    """Cross entropy with a little label smoothing; pictures are moved, scaled and made noisy."""
    torch.manual_seed(seed)
    training, held_out = (data.load(glyphs, aside) for aside in (False, True))
    network = Network(len(CLASSES), WIDTHS, GROUPS).train()

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(0, len(training), (batch,), generator=rng)
        with torch.autocast("cpu", torch.bfloat16):
            _, logits = network(moved(training.batch(chosen, SIDE), rng))
        return F.cross_entropy(logits.float(), training.labels[chosen], label_smoothing=0.05)

    loop.train(loss_of, [(network, lr)], loop.TrainingBudget(steps, minutes), out / "checkpoint.pt", seed=seed)
    for name, part in (("training", training), ("held out", held_out)):
        exact, caseless = accuracy(network, part)
        print(f"{name} families: {exact:.4f} of {len(part)} pictures, {caseless:.4f} without case", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half().contiguous() for name, weight in network.state_dict().items()}, out / WEIGHTS)
    config = {"model_type": KIND, "labels": list(CLASSES), "widths": WIDTHS, "groups": GROUPS, "image_size": SIDE}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
