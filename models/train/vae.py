"""Train the VAE, 64×64 images to 4×16×16 latents with unit variance; or its decoder alone.

    python -m models.train.vae --out runs/vae --minutes 10
    python -m models.train.vae --out runs/decoder --decoder-of models/emoji64/vae --minutes 20

The decoder alone can be bettered at any time: the encoder stays, so the latents a UNet has learnt stay valid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from torch.nn import functional as F

from models.train import data, loop
from registry.commands.command_line import run_command

KL_WEIGHT = 1e-5
LATENT_NOISE = 0.15  # a sampled latent is never exact, so the decoder must forgive this much


def build() -> AutoencoderKL:
    """A new VAE of 0.65 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=data.SIZE,
        scaling_factor=1.0,
    )


def augment(images: torch.Tensor, rng: torch.Generator, permute: float) -> torch.Tensor:
    """Images (b, 3, h, w) with random flips, shifts of up to 4 pixels, and RGB in another order for a share `permute` of them.

    Without the permutation red and yellow rule the data so much that a latent direction, green, collapsed twice.
    """
    padded = F.pad(images, (4, 4, 4, 4), value=1.0)
    out = []
    for image in padded:
        y, x = torch.randint(0, 9, (2,), generator=rng).tolist()
        moved = image[:, y : y + data.SIZE, x : x + data.SIZE]
        flip, swap = torch.rand(2, generator=rng).tolist()
        moved = moved.flip(-1) if flip < 0.5 else moved
        out.append(moved[torch.randperm(3, generator=rng)] if swap < permute else moved)
    return torch.stack(out)


def distance(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Reconstruction loss: L1 + 0.5 MSE + 0.5 L1 of the differences between neighbouring pixels (for sharp edges)."""
    edges = [F.l1_loss(made.diff(dim=d), real.diff(dim=d)) for d in (-1, -2)]
    return F.l1_loss(made, real) + 0.5 * F.mse_loss(made, real) + 0.5 * (edges[0] + edges[1])


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: torch.Tensor) -> list[float]:
    """Fold a channel PCA into quant_conv and post_quant_conv: latents z' = D⁻¹ Uᵀ (z − m), uncorrelated, variance 1.

    U D² Uᵀ is the covariance of z over all pixels, m its mean. Returns D; a direction with next to no variance is
    set to zero instead of being blown up to noise.
    """
    z = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 32)]).permute(0, 2, 3, 1).flatten(0, 2)
    mean = z.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((z - mean).T).double())
    scale = values.clamp(min=0).sqrt().flip(0).float()
    basis = vectors.flip(1).float()
    alive = (scale > 0.02 * scale[0]).float()
    forward = (basis * (alive / scale.clamp(min=1e-8))).T
    back = basis * (alive * scale)

    quant, post = vae.quant_conv, vae.post_quant_conv
    n = len(scale)
    quant.weight[:n] = torch.einsum("oi,ichw->ochw", forward, quant.weight[:n])
    quant.bias[:n] = forward @ (quant.bias[:n] - mean)
    quant.weight[n:], quant.bias[n:] = 0.0, -10.0  # the spread of the posterior has done its work
    inner = post.weight[:, :, 0, 0]
    post.bias.copy_(post.bias + inner @ mean)
    post.weight.copy_((inner @ back)[:, :, None, None])
    return [float(s) for s in scale]


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Reconstruction PSNR in dB, the mean over the images of 10 log10(1 / MSE) for pixels in [0, 1]."""
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) - part for part in torch.split(images, 32)]
    return float((-10 * (torch.cat(parts) / 2).square().mean((1, 2, 3)).log10()).mean())


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, the VAE's folder")],
    decoder_of: Annotated[Path | None, typer.Option(help="VAE folder whose decoder is to be bettered")] = None,
    prompts: Annotated[Path | None, typer.Option(help="only these emoji; else all things")] = None,
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 8,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 2e-3,
    seed: int = 0,
) -> None:
    """Print the PSNR before and after, and, after a whole training, how much each latent channel carried."""
    torch.manual_seed(seed)
    pixels = data.pictures(data.chosen(images, prompts) if prompts else data.things(images))
    vae = build() if decoder_of is None else AutoencoderKL.from_pretrained(decoder_of, dtype=torch.float32)
    if decoder_of is not None:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        print(f"PSNR before: {psnr(vae, pixels):.2f} dB on {len(pixels)} images", flush=True)

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(0, len(pixels), (batch,), generator=rng)
        real = augment(pixels[chosen], rng, permute=0.6 if decoder_of is None else 0.0)
        with torch.set_grad_enabled(decoder_of is None):
            posterior = vae.encode(real).latent_dist
        spread = LATENT_NOISE * torch.rand(batch, 1, 1, 1, generator=rng)
        latents = posterior.mean + spread * torch.randn(posterior.mean.shape, generator=rng)
        loss = distance(vae.decode(latents).sample, real)
        return loss + KL_WEIGHT * posterior.kl().mean() if decoder_of is None else loss

    loop.train(loss_of, [(vae, lr)], loop.TrainingBudget(steps, minutes), out / "checkpoint.pt", seed=seed)
    if decoder_of is None:
        print("latent channels, standard deviation:", [round(s, 3) for s in whiten(vae, pixels)])
    print(f"PSNR after: {psnr(vae, pixels):.2f} dB on {len(pixels)} images")
    vae.half().save_pretrained(out)


if __name__ == "__main__":
    run_command(main)
