"""Train `glyphs-dit`: a diffusion transformer by flow matching, on the VQ autoencoder's latents and by class.

    python -m models.train.glyphs.transformer --vq models/glyphs-ldm/vqvae --out runs/glyphs-dit --minutes 95

The network is DiT's (Peebles and Xie 2022), the path and the loss are those of rectified flow with logit-normal times (Esser et
al. 2024, section 3.1), which beat DiT's own noise levels at every size in SiT (Ma et al. 2024). The same command again resumes
from `OUT/checkpoint.pt`; at the end of the budget the averaged weights are written, as fp16.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from models.train import loop
from models.train.glyphs import CLASSES, data
from models.train.glyphs.diffusion import NULL, Decay, Out, Peak, Pictures, latents_of
from registry.commands.command_line import command_line

LEVELS = 1000  # the network is shown this many times σ
app = command_line(help=__doc__ or "")


def transformer() -> DiTTransformer2DModel:
    """Twelve blocks of width 144 on 64 tokens; begins as DiT does, each block as the identity.

    diffusers gives each block a copy of the embedding of time and class; here they are one module, until `with_copies`.
    """
    made = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=36, in_channels=3, out_channels=3, num_layers=12, sample_size=16,
        patch_size=2, num_embeds_ada_norm=NULL,
    )  # fmt: skip
    embedding = made.transformer_blocks[0].norm1.emb
    for block in made.transformer_blocks:
        block.norm1.emb = embedding
    for module in made.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    patches = made.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(patches.weight.shape[0], -1))
    nn.init.zeros_(patches.bias)
    for table in (embedding.class_embedder.embedding_table, *embedding.timestep_embedder.children()):
        if hasattr(table, "weight"):
            nn.init.normal_(table.weight, std=0.02)
    for linear in (*(block.norm1.linear for block in made.transformer_blocks), made.proj_out_1, made.proj_out_2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return made.eval()  # in `train` it would keep back classes by itself, in each block others


class ProductsOfAttention:
    """An attention processor of diffusers' that says attention's two products itself.

    On a CPU the gradient of torch's fused attention takes half of a training step in bfloat16.
    """

    def __call__(self, attention: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        """Tokens (rows, tokens, width) to the same shape, without a mask."""
        projections = (attention.to_q, attention.to_k, attention.to_v)
        heads = (one(hidden_states).unflatten(2, (attention.heads, -1)).transpose(1, 2) for one in projections)
        query, key, value = heads
        weights = (attention.scale * query @ key.transpose(2, 3)).softmax(-1).to(value.dtype)
        linear, dropout = attention.to_out
        made: Tensor = dropout(linear((weights @ value).transpose(1, 2).flatten(2)))
        return made


def with_copies(made: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """As diffusers stores it: each block with an embedding of its own, all alike."""
    for block in made.transformer_blocks[1:]:
        block.norm1.emb = deepcopy(block.norm1.emb)
    return made


@app.command()
def main(
    out: Out,
    autoencoder: Annotated[Path, typer.Option("--vq", help="folder of the VQModel")],
    glyphs: Pictures = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 32,
    lr: Peak = 7e-4,
    decay: Decay = 0.999,
    drop: Annotated[float, typer.Option(help="share of pictures whose class is kept back, for guidance")] = 0.1,
    half: Annotated[bool, typer.Option(help="bfloat16 where it is safe")] = True,
    start: Annotated[Path | None, typer.Option(help="a folder of this model to begin with, instead of at random")] = None,
    seed: int = 0,
) -> None:
    """Minimise E ‖(ε − z) − v_θ((1 − σ) z + σ ε, 1000 σ, c)‖² over latents z, with σ = sigmoid(u), u ~ N(0, 1)."""
    torch.manual_seed(seed)
    training = data.load(glyphs, held_out=False)
    coder = VQModel.from_pretrained(autoencoder, dtype=torch.float32).eval()
    latents, network = latents_of(coder, training, out / "latents.pt"), transformer()
    if start is not None:
        network.load_state_dict(DiTTransformer2DModel.from_pretrained(start / "transformer", dtype=torch.float32).state_dict())
    for block in network.transformer_blocks:
        block.attn1.set_processor(ProductsOfAttention())

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(0, len(training), (batch,), generator=rng)
        z = latents[chosen].float()
        noise = torch.randn(z.shape, generator=rng)
        spread = (torch.randperm(batch, generator=rng) + torch.rand(batch, generator=rng)) / batch  # stratified
        sigma = torch.sigmoid(torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)))
        labels = training.labels[chosen].where(torch.rand(batch, generator=rng) >= drop, torch.tensor(NULL))
        share = sigma[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            made = network(torch.lerp(z, noise, share), LEVELS * sigma, labels).sample
        return F.mse_loss(made.float(), noise - z)

    budget = loop.TrainingBudget(steps, minutes)
    loop.train(loss_of, [(network, lr)], budget, out / "checkpoint.pt", seed=seed, decay=decay)
    with_copies(network).half().save_pretrained(out / "transformer")
    coder.half().save_pretrained(out / "vqvae")
    shutil.copy(autoencoder / "config.json", out / "vqvae")  # what was saved says in which folder it was found
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS).save_pretrained(out / "scheduler")
    index = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vqvae": ["diffusers", "VQModel"],
        "id2label": {str(number): label for number, label in enumerate(CLASSES)},
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (out / "prompts.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
