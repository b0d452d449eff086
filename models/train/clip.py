"""Train the tokenizer and a small CLIP on every emoji and its name.

    python -m models.train.clip --out runs/clip --minutes 10

Writes `OUT/clip` (the measuring instrument), `OUT/tokenizer` and `OUT/text_encoder` (where the UNet's text tower
starts from). It memorises its pairs: a relative measure inside this project, not comparable with any published one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from models.train import data, loop
from models.train.pipeline import keep_float32
from models.train.vae import augment
from registry.commands.command_line import run_command

LENGTH = 16
WIDTH = 128
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(texts: list[str], vocabulary: int = 2048) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's form. Every byte is a token, so there is no text that it cannot write."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), letters])
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, end_of_word_suffix=WORD_END)
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + WORD_END for a in alphabet), *("".join(pair) for pair in merges), START, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A new CLIP of 1.5 M parameters: text 2 layers, image 4 layers over 8×8 patches, each 128 wide; projection to 128."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "num_hidden_layers": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": data.SIZE, "patch_size": 8, "num_hidden_layers": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


@torch.no_grad()
def retrieval(clip: CLIPModel, images: torch.Tensor, ids: torch.Tensor) -> tuple[float, float]:
    """Share of the images whose own text is the nearest of all texts, and among the nearest five."""
    clip.eval()
    ranks = clip(input_ids=ids, pixel_values=images).logits_per_image.argsort(dim=1, descending=True)
    hits = ranks == torch.arange(len(images))[:, None]
    return float(hits[:, :1].any(1).float().mean()), float(hits[:, :5].any(1).float().mean())


def main(
    out: Annotated[Path, typer.Option(help="checkpoint.pt and, at the end, clip/, tokenizer/, text_encoder/")],
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 160,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 1e-3,
    seed: int = 0,
) -> None:
    """The symmetric cross entropy of CLIP (Radford et al. 2021, figure 3) over lightly moved images."""
    torch.manual_seed(seed)
    emoji = data.things(images)
    pixels = data.pictures(emoji)
    tokenizer = train_tokenizer([text for one in emoji for text in (one.name, *one.aliases)])
    ids = tokenizer([one.name for one in emoji], padding="max_length", truncation=True, return_tensors="pt").input_ids
    clip = build(tokenizer).train()

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randperm(len(emoji), generator=rng)[:batch]
        moved = augment(pixels[chosen], rng, permute=0.0)
        loss: torch.Tensor = clip(input_ids=ids[chosen], pixel_values=moved, return_loss=True).loss
        return loss

    loop.train(loss_of, [(clip, lr)], loop.TrainingBudget(steps, minutes), out / "checkpoint.pt", seed=seed)
    first, five = retrieval(clip, pixels, ids)
    print(f"image to text over {len(emoji)} pairs: top-1 {first:.3f}, top-5 {five:.3f}")

    tokenizer.save_pretrained(out / "tokenizer")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    text.half().save_pretrained(out / "text_encoder")
    keep_float32(out / "text_encoder")
    clip.half().save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")
    size = {"shortest_edge": data.SIZE}
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessor(size=size, crop_size=data.SIZE, image_mean=half, image_std=half).save_pretrained(out / "clip")


if __name__ == "__main__":
    run_command(main)
