"""Train the VQ autoencoder: 64×64 grey pictures to 3×16×16 latents, in the form of latent diffusion's f = 4.

    python -m models.train.glyphs.vq --out runs/vqvae --minutes 8

Its codebook is a grid that stays as it is, eight levels in each of three dimensions, as in finite scalar quantisation
(Mentzer et al. 2023, arXiv 2309.15505): 512 codes of which none can fall out of use, however short the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import VQModel
from torch.nn import functional as F

from models.train import loop
from models.train.glyphs import data
from models.train.vae import distance
from registry.commands.command_line import run_command

LEVELS = 8
EXTENT = 1.75  # of the grid, on both sides of zero
COMMITMENT = 0.25  # weight of the distance from a latent to its code


def build() -> VQModel:
    """A new one, about half a million parameters; its codebook is the grid."""
    vq = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=3,
        num_vq_embeddings=LEVELS**3,
        vq_embed_dim=3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )
    axis = torch.linspace(-EXTENT, EXTENT, LEVELS)
    vq.quantize.embedding.weight.data.copy_(torch.cartesian_prod(axis, axis, axis))
    vq.quantize.embedding.requires_grad_(False)
    return vq


@torch.no_grad()
def encode(vq: VQModel, glyphs: data.Glyphs, chosen: torch.Tensor) -> torch.Tensor:
    """Latents (b, 3, 16, 16) before quantisation, as diffusion models them: the decoder quantises."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vq.encode(glyphs.batch(part)).latents.float() for part in chosen.split(128)]
    return torch.cat(parts)


@torch.no_grad()
def judged(vq: VQModel, glyphs: data.Glyphs, count: int = 1024) -> tuple[float, float, int]:
    """PSNR in dB of what is decoded, the standard deviation of latents, and how many codes are used, over some pictures."""
    chosen = torch.linspace(0, len(glyphs) - 1, count).long()
    error, used, latents = [], set(), []
    for part in chosen.split(64):
        real = glyphs.batch(part)
        z = vq.encode(real).latents
        made = vq.decode(z).sample.clamp(-1, 1)
        error.append(((made - real) / 2).square().mean((1, 2, 3)))
        used |= set(vq.quantize(z)[2][2].flatten().tolist())
        latents.append(z)
    return float((-10 * torch.cat(error).log10()).mean()), float(torch.cat(latents).std()), len(used)


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, the folder of the VQModel")],
    glyphs: Annotated[Path, typer.Option(help="folder made by models.train.glyphs.draw")] = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 32,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 3e-3,
    seed: int = 0,
) -> None:
    """Minimise the reconstruction loss plus the commitment; gradients pass the quantisation straight through."""
    torch.manual_seed(seed)
    training, held_out = (data.load(glyphs, aside) for aside in (False, True))
    vq = build().train()

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        real = training.batch(torch.randint(0, len(training), (batch,), generator=rng))
        with torch.autocast("cpu", torch.bfloat16):
            z = vq.encode(real).latents.float()
            code = vq.quantize(z)[0]
            made = vq.decode(code, force_not_quantize=True).sample
        commitment = F.mse_loss(z, (code - z).detach() + z.detach())
        return distance(made.float(), real) + COMMITMENT * commitment

    loop.train(loss_of, [(vq, lr)], loop.TrainingBudget(steps, minutes), out / "checkpoint.pt", seed=seed)
    vq.eval()
    for name, part in (("training", training), ("held out", held_out)):
        quality, spread, used = judged(vq, part)
        print(f"{name} families: PSNR {quality:.2f} dB, latents' deviation {spread:.3f}, {used} of {LEVELS**3} codes used")
        if part is training:
            vq.register_to_config(scaling_factor=1 / spread)
    vq.half().save_pretrained(out)


if __name__ == "__main__":
    run_command(main)
