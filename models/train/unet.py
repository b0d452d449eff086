"""Train the UNet, and the text tower along with it, on the latents of the emoji that a prompt file names.

    python -m models.train.unet --init models/emoji64 --out runs/emoji64 --minutes 70

`--init` is a pipeline folder: `vae/`, `tokenizer/`, `text_encoder/` and, to go on instead of starting anew, `unet/`.
The same command again resumes from `OUT/checkpoint.pt`; when the budget is spent, the averaged weights are exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from models.train import data, loop
from models.train.pipeline import EMOJI64, build_unet, export, noise_levels
from registry.commands.command_line import run_command


class Captions:
    """Token ids of a batch: mostly the prompt itself, sometimes a shorter name, sometimes nothing (for guidance)."""

    def __init__(self, emoji: list[data.Emoji], tokenizer: PreTrainedTokenizerBase, alias: float, drop: float) -> None:
        self.alias, self.drop = alias, drop
        texts = [""]
        self.choices: list[range] = []
        for one in emoji:
            self.choices.append(range(len(texts), len(texts) + 1 + len(one.aliases)))
            texts += [one.prompt, *one.aliases]
        self.ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def draw(self, indices: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Token ids (b, length) of captions for b emoji, given by number."""
        alias, drop, pick = torch.rand(3, len(indices), generator=rng).unbind()
        texts = []
        for i, index in enumerate(indices.tolist()):
            prompt, *others = self.choices[index]
            other = others[int(pick[i] * len(others))] if others else prompt
            texts.append(0 if drop[i] < self.drop else other if alias[i] < self.alias else prompt)
        return self.ids[texts]


def batch_of(step: int, size: int, count: int, seed: int) -> torch.Tensor:
    """The emoji of a step, by number (size,): places in an endless sequence of shuffles, so all are seen equally often."""
    places = range(step * size, (step + 1) * size)
    shuffles = {n: torch.randperm(count, generator=loop.generator(seed + 1, n)) for n in {p // count for p in places}}
    return torch.stack([shuffles[p // count][p % count] for p in places])


def stratified(size: int, levels: int, rng: torch.Generator) -> torch.Tensor:
    """Timesteps (size,), one from each of `size` equal parts of [0, levels): less noise in the loss than free draws."""
    return ((torch.arange(size) + torch.rand(size, generator=rng)) * (levels / size)).long().clamp_(max=levels - 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Latents (n, 4, 16, 16) of images (n, 3, 64, 64): the means of the posteriors, once, for the VAE stays as it is."""
    parts = [vae.encode(part).latent_dist.mean for part in torch.split(images, 32)]
    return torch.cat(parts) * float(vae.config.scaling_factor)


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, the fp16 pipeline folder")],
    init: Annotated[Path, typer.Option(help="pipeline folder to start from")] = EMOJI64,
    prompts: Annotated[Path, typer.Option(help="what to train on, one prompt a line")] = EMOJI64 / "prompts.txt",
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
    steps: Annotated[int | None, typer.Option(help="train for so many steps")] = None,
    minutes: Annotated[float | None, typer.Option(help="... or for so many minutes")] = None,
    batch: int = 24,
    lr: Annotated[float, typer.Option(help="peak learning rate of the UNet")] = 1e-3,
    text_lr: Annotated[float, typer.Option(help="peak learning rate of the text tower")] = 2e-4,
    decay: Annotated[float, typer.Option(help="of the moving average of the weights")] = 0.999,
    alias: Annotated[float, typer.Option(help="share of captions that are a short name")] = 0.15,
    drop: Annotated[float, typer.Option(help="share of captions left empty, for classifier-free guidance")] = 0.1,
    save_minutes: Annotated[float, typer.Option(help="between checkpoints")] = 4.0,
    seed: int = 0,
) -> None:
    """Minimise E ‖v − v_θ(x_t, t, c)‖² with v = α_t ε − σ_t x_0 (Salimans & Ho 2022, appendix D)."""
    torch.manual_seed(seed)
    emoji = data.chosen(images, prompts)
    tokenizer = AutoTokenizer.from_pretrained(init / "tokenizer")
    text = CLIPTextModel.from_pretrained(init / "text_encoder", dtype=torch.float32).train()
    vae = AutoencoderKL.from_pretrained(init / "vae", dtype=torch.float32).eval()
    unet = build_unet(init / "unet").train()
    levels = noise_levels()
    latents = encode(vae, data.pictures(emoji))
    captions = Captions(emoji, tokenizer, alias, drop)

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = batch_of(step, batch, len(emoji), seed)
        x0, t = latents[chosen], stratified(batch, levels.config.num_train_timesteps, rng)
        noise = torch.randn(x0.shape, generator=rng)
        noisy, target = levels.add_noise(x0, noise, t), levels.get_velocity(x0, noise, t)
        states = text(captions.draw(chosen, rng)).last_hidden_state
        return F.mse_loss(unet(noisy, t, states).sample, target)

    groups = [(unet, lr), (text, text_lr)]
    budget = loop.TrainingBudget(steps, minutes)
    loop.train(loss_of, groups, budget, out / "checkpoint.pt", seed=seed, decay=decay, save_minutes=save_minutes)
    export(out, unet, text, tokenizer, vae)


if __name__ == "__main__":
    run_command(main)
