"""Train the two UNets: `ldm`, on the VQ autoencoder's latents and by class, and `ddpm`, on pixels and by nothing.

    python -m models.train.glyphs.diffusion ldm  --vq runs/vqvae --out runs/glyphs-ldm --minutes 45
    python -m models.train.glyphs.diffusion ddpm --out runs/glyphs-ddpm --minutes 40

Both predict the noise. The same command again resumes from `OUT/checkpoint.pt`; at the end of the budget the averaged weights
are written, as fp16, in the form of CompVis' LDM-4-G and of Google's DDPMs. On a CPU `ddpm --compiled` takes 0.56 of the time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.train import loop
from models.train.glyphs import CLASSES, data, vq
from models.train.pipeline import calm
from models.train.unet import stratified
from registry.commands.command_line import command_line

WIDTH = 64  # of a class's embedding
NULL = len(CLASSES)  # the class that means none, the table's last
app = command_line(help=__doc__ or "")
BRANCHES = ("conv2", "proj_out", "to_out.0")  # their ends


def latent_unet() -> UNet2DConditionModel:
    """5.7 M parameters, four levels of 16×16 latents; as in LDM-4-G the class is a context of one token, not at level 0."""
    return calm(
        UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 64, 96, 128),
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
        ),
        *BRANCHES,
    )


def pixel_unet() -> UNet2DModel:
    """1.7 M parameters, four levels of 32×32 grey pixels, attention at 8×8 and in the middle."""
    return calm(
        UNet2DModel(
            sample_size=32,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32, 64, 96),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=16,
        ),
        *BRANCHES,
    )


def latent_levels() -> DDIMScheduler:
    """LDM-4-G's noise levels: betas linear in their roots."""
    return DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def pixel_levels() -> DDPMScheduler:
    """The scheduler of google/ddpm-cifar10-32: linear betas, fixed large variance, x₀ clipped to pixels."""
    return DDPMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", variance_type="fixed_large", clip_sample=True
    )


@contextmanager
def _quickly() -> Iterator[None]:
    """bfloat16 where it's safe; attention by matrix products: with so few tokens the fused kernel's gradient is half a step."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


Out = Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, the pipeline's folder")]
Pictures = Annotated[Path, typer.Option(help="folder made by models.train.glyphs.draw")]
Peak = Annotated[float, typer.Option(help="peak learning rate")]
Decay = Annotated[float, typer.Option(help="of the moving average of the weights")]


@app.command()
def ldm(
    out: Out,
    autoencoder: Annotated[Path, typer.Option("--vq", help="folder of the VQModel")],
    glyphs: Pictures = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 64,
    lr: Peak = 1e-3,
    decay: Decay = 0.999,
    drop: Annotated[float, typer.Option(help="share of pictures whose class is kept back, for guidance")] = 0.1,
    seed: int = 0,
) -> None:
    """Minimise E ‖ε − ε_θ(z_t, t, c)‖² over the autoencoder's latents z (Rombach et al. 2022, eq. 3)."""
    torch.manual_seed(seed)
    training = data.load(glyphs, held_out=False)
    coder = VQModel.from_pretrained(autoencoder, dtype=torch.float32).eval()
    latents = latents_of(coder, training, out / "latents.pt")
    unet, table = latent_unet().train(), nn.Embedding(NULL + 1, WIDTH)
    levels = latent_levels()

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(0, len(training), (batch,), generator=rng)
        z, t = latents[chosen].float(), stratified(batch, levels.config.num_train_timesteps, rng)
        noise = torch.randn(z.shape, generator=rng)
        labels = training.labels[chosen].where(torch.rand(batch, generator=rng) >= drop, torch.tensor(NULL))
        with _quickly():
            made = unet(levels.add_noise(z, noise, t), t, table(labels)[:, None]).sample
        return F.mse_loss(made.float(), noise)

    budget = loop.TrainingBudget(steps, minutes)
    loop.train(loss_of, [(unet, lr), (table, lr)], budget, out / "checkpoint.pt", seed=seed, decay=decay)
    unet.half().save_pretrained(out / "unet")
    coder.half().save_pretrained(out / "vqvae")
    shutil.copy(autoencoder / "config.json", out / "vqvae")  # what was saved says in which folder it was found
    levels.save_pretrained(out / "scheduler")
    (out / "class_embedder").mkdir(exist_ok=True)
    (out / "class_embedder" / "config.json").write_text(json.dumps({"null_class": NULL}) + "\n")
    weight = table.weight.detach().half()
    save_file({"embedding.weight": weight}, out / "class_embedder" / "diffusion_pytorch_model.safetensors")
    index = {
        "class_embedder": ["flexiffusion", "ClassEmbedder"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "VQModel"],
        "id2label": {str(number): label for number, label in enumerate(CLASSES)},
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (out / "prompts.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


@app.command()
def ddpm(
    out: Out,
    glyphs: Pictures = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 64,
    lr: Peak = 1e-3,
    decay: Decay = 0.999,
    start: Annotated[Path | None, typer.Option(help="a folder of this model to begin with, instead of at random")] = None,
    compiled: Annotated[bool, typer.Option(help="compile the network first: two minutes, and a C++ compiler")] = False,
    seed: int = 0,
) -> None:
    """Minimise E ‖ε − ε_θ(x_t, t)‖² over pixels (Ho et al. 2020, eq. 14)."""
    torch.manual_seed(seed)
    training = data.load(glyphs, held_out=False)
    unet, levels = pixel_unet().train(), pixel_levels()
    if start is not None:
        unet.load_state_dict(UNet2DModel.from_pretrained(start / "unet", dtype=torch.float32).state_dict())
    network = torch.compile(unet.to(memory_format=torch.channels_last)) if compiled else unet  # uncompiled that is slower

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        x = training.batch(torch.randint(0, len(training), (batch,), generator=rng), 32)
        t, noise = stratified(batch, levels.config.num_train_timesteps, rng), torch.randn(x.shape, generator=rng)
        with _quickly():
            made = network(levels.add_noise(x, noise, t), t).sample
        return F.mse_loss(made.float(), noise)

    budget = loop.TrainingBudget(steps, minutes)
    loop.train(loss_of, [(unet, lr)], budget, out / "checkpoint.pt", seed=seed, decay=decay)
    DDPMPipeline(unet.half(), levels).save_pretrained(out)


@torch.no_grad()
def latents_of(coder: VQModel, glyphs: data.Glyphs, kept: Path) -> torch.Tensor:
    """Latents of all training pictures with unit variance, fp16; computed once."""
    if kept.exists():
        return torch.as_tensor(torch.load(kept, weights_only=True))
    z = vq.encode(coder, glyphs, torch.arange(len(glyphs))) * float(coder.config.scaling_factor)
    loop.save(z.half(), kept)  # type: ignore[arg-type]
    return z.half()


if __name__ == "__main__":
    app()
