"""Train a LoRA of emoji64 in kohya's layout: the same emoji in shades of grey, by a low-rank change of the UNet alone.

    python -m models.train.lora --out runs/grey --minutes 8

Every linear layer of an attention block and every convolution of a resnet gets W + (α / r) · B · A with α = r (Hu et al. 2021,
arXiv 2106.09685). The same command again resumes from `OUT/checkpoint.pt`; at the end `OUT/grey.safetensors` is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, CLIPTextModel

from models.train import data, loop
from models.train.pipeline import EMOJI64, build_unet, noise_levels
from models.train.unet import Captions, batch_of, encode, stratified
from registry.commands.command_line import run_command

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


class LowRank(nn.Module):
    """W + B · A. down: A as a layer of `rank` outputs; up: B as one of its inputs, zeros at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, *rest = weight.shape
        self.down = nn.Parameter(torch.empty(rank, *rest))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in rest[1:])))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, for `parametrize`."""
        return weight + (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)


def adapt(unet: UNet2DConditionModel, rank: int) -> dict[str, LowRank]:
    """Make the low-rank changes all that is trained of a UNet; they are given by the names of their layers."""
    unet.requires_grad_(False)
    changes = {}
    for name, layer in list(unet.named_modules()):
        inside = ".attentions." in name if isinstance(layer, nn.Linear) else isinstance(layer, nn.Conv2d) and ".conv" in name
        if inside:
            changes[name] = LowRank(layer.weight, rank)
            parametrize.register_parametrization(layer, "weight", changes[name])
    return changes


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, grey.safetensors")],
    init: Annotated[Path, typer.Option(help="pipeline folder to adapt")] = EMOJI64,
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
    rank: Annotated[int, typer.Option(help="of each change")] = 4,
    steps: Annotated[int | None, typer.Option(help="train for so many steps")] = None,
    minutes: Annotated[float | None, typer.Option(help="... or for so many minutes")] = None,
    batch: int = 24,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 2e-3,
    seed: int = 0,
) -> None:
    """Minimise the loss of `models.train.unet` over the low-rank changes, on grey pictures with the same captions."""
    torch.manual_seed(seed)
    emoji = data.chosen(images, init / "prompts.txt")
    captions = Captions(emoji, AutoTokenizer.from_pretrained(init / "tokenizer"), alias=0.15, drop=0.1)
    text = CLIPTextModel.from_pretrained(init / "text_encoder", dtype=torch.float32).eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(init / "vae", dtype=torch.float32).eval()
    grey = torch.einsum("nchw,c->nhw", data.pictures(emoji), torch.tensor(LUMA))[:, None].expand(-1, 3, -1, -1)
    latents, levels, unet = encode(vae, grey), noise_levels(), build_unet(init / "unet").train()
    changes = adapt(unet, rank)

    def loss_of(step: int, rng: torch.Generator) -> Tensor:
        chosen = batch_of(step, batch, len(emoji), seed)
        x0, t = latents[chosen], stratified(batch, levels.config.num_train_timesteps, rng)
        noise = torch.randn(x0.shape, generator=rng)
        noisy, target = levels.add_noise(x0, noise, t), levels.get_velocity(x0, noise, t)
        states = text(captions.draw(chosen, rng)).last_hidden_state
        return F.mse_loss(unet(noisy, t, states).sample, target)

    trained = nn.ModuleList(changes.values())
    loop.train(loss_of, [(trained, lr)], loop.TrainingBudget(steps, minutes), out / "checkpoint.pt", seed=seed, decay=0.99)
    tensors = {}
    for name, change in changes.items():
        kohya = "lora_unet_" + name.replace(".", "_")
        tensors[f"{kohya}.lora_down.weight"] = change.down.detach().half().contiguous()
        tensors[f"{kohya}.lora_up.weight"] = change.up.detach().half().contiguous()
        tensors[f"{kohya}.alpha"] = torch.tensor(float(rank)).half()
    save_file(tensors, out / "grey.safetensors", metadata={"ss_network_dim": str(rank), "ss_network_alpha": str(rank)})


if __name__ == "__main__":
    run_command(main)
