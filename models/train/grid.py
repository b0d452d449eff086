"""Compare two sets of weights: what they draw for the same prompts from the same noise, beside the real images.

    python -m models.train.grid draw models/emoji64 --out runs/before.pt
    python -m models.train.grid draw runs/emoji64 --out runs/after.pt
    python -m models.train.grid compare runs/before.pt runs/after.pt --out runs/compare

The figures come from the small CLIP in `models/emoji64/clip`, which knows nothing but these emoji: good for before
against after, not for anything else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import scipy.linalg
import torch
import typer
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from models.train import data, loop
from models.train.pipeline import EMOJI64
from registry.commands.command_line import command_line

SHOWN = (
    *("grinning face", "smiling face with sunglasses", "pouting face"),
    *("face with tears of joy", "smiling face with heart-shaped eyes", "skull"),
    *("red heart", "blue heart", "broken heart", "red apple", "tangerine", "lemon"),
    *("strawberry", "slice of pizza", "hamburger", "doughnut", "birthday cake", "tomato"),
    *("dog face", "cat face", "panda face", "pig face", "frog face", "tiger face"),
    *("sunflower", "rose", "four leaf clover", "deciduous tree", "mushroom", "sun"),
    *("rainbow", "penguin", "crescent moon", "snowman", "blue circle", "octopus"),
)
BATCH = 32


@torch.no_grad()
def draw(folder: Path, prompts: list[str], steps: int, guidance: float, seed: int) -> torch.Tensor:
    """Images (n, 3, 64, 64) in [-1, 1]. The noise of a prompt depends on the seed and its place in the list only."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.cat([torch.randn(1, 4, 16, 16, generator=loop.generator(seed, i)) for i in range(len(prompts))])
    parts = []
    for i in range(0, len(prompts), BATCH):
        made = pipeline(
            prompts[i : i + BATCH],
            latents=noise[i : i + BATCH],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
        )
        parts.append(made.images * 2 - 1)
    return torch.cat(parts)


class ClipJudge:
    """CLIP features of images against the real ones and against the names that CLIP was taught."""

    def __init__(self, folder: Path, emoji: list[data.Emoji], real: torch.Tensor) -> None:
        self.clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer([e.name for e in emoji], padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            text = self.clip.text_model(input_ids=tokens.input_ids).pooler_output
            self.names = F.normalize(self.clip.text_projection(text), dim=-1)
        self.emoji, self.real = emoji, self.features(real)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """CLIP's features of images (n, 3, 64, 64): (n, 128), not normalised."""
        parts = [self.clip.vision_model(pixel_values=part).pooler_output for part in torch.split(images, 64)]
        return torch.cat([self.clip.visual_projection(part) for part in parts])

    def figures(self, images: torch.Tensor) -> dict[str, float]:
        """The figures of one image per emoji, in their order; the nearest is always sought among all of them."""
        features = self.features(images)
        own = torch.arange(len(features))
        to_name = F.normalize(features, dim=-1) @ self.names.T
        to_real = F.normalize(features, dim=-1) @ F.normalize(self.real, dim=-1).T
        return {
            "frechet_to_real": frechet(features, self.real),
            "clip_score": float(to_name.diagonal().mean()),
            "name_top1": float((to_name.argmax(1) == own).float().mean()),
            "name_top5": float((to_name.topk(5).indices == own[:, None]).any(1).float().mean()),
            "real_top1": float((to_real.argmax(1) == own).float().mean()),
        }


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of features (n, d) (Heusel et al. 2017, eq. 6)."""
    x, y = a.double().numpy(), b.double().numpy()
    cx, cy = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cx @ cy).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * root))


def sheet(lines: list[torch.Tensor], path: Path, zoom: int = 1, gap: int = 4) -> None:
    """Write a picture of lines of images, each line (n, 3, 64, 64) in [-1, 1]."""
    side = data.SIZE + gap
    canvas = np.full((side * len(lines), side * max(map(len, lines)), 3), 255, dtype=np.uint8)
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            canvas[y * side : y * side + data.SIZE, x * side : x * side + data.SIZE] = pixels
    picture = Image.fromarray(canvas)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path, optimize=True)


app = command_line(help=__doc__ or "")
PROMPTS = EMOJI64 / "prompts.txt"


@app.command("draw")
def draw_command(
    folder: Annotated[Path, typer.Argument(help="pipeline folder")],
    out: Annotated[Path, typer.Option(help="the images, a .pt file")],
    prompts: Annotated[Path, typer.Option(help="one prompt a line")] = PROMPTS,
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
    by_name: Annotated[bool, typer.Option(help="ask for the Unicode names, which older weights know better")] = False,
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
) -> None:
    """Draw one image for each prompt: the same noise for the same seed, whatever the weights."""
    emoji = data.chosen(images, prompts)
    made = draw(folder, [e.name if by_name else e.prompt for e in emoji], steps, guidance, seed)
    loop.save({"images": (made.clamp(-1, 1) * 127.5 + 127.5).round().byte()}, out)


@app.command()
def compare(
    drawn: Annotated[list[Path], typer.Argument(help="files made by draw, for example before and after")],
    out: Annotated[Path, typer.Option(help="folder for figures.json, compare.png and all.png of the last file")],
    prompts: Annotated[Path, typer.Option(help="the prompts they were drawn for")] = PROMPTS,
    clip: Annotated[Path, typer.Option(help="the measuring instrument")] = EMOJI64 / "clip",
    images: Annotated[Path, typer.Option(help="folder made by models.train.data")] = data.FOLDER,
) -> None:
    """Print and keep the figures over all prompts; show some: the real ones first, then each file's."""
    out.mkdir(parents=True, exist_ok=True)
    emoji = data.chosen(images, prompts)
    real = data.pictures(emoji)
    judge = ClipJudge(clip, emoji, real)
    shown = torch.tensor([i for name in SHOWN for i, e in enumerate(emoji) if e.prompt == name])
    sets = {"real": real} | {f.stem: torch.load(f, weights_only=True)["images"] / 127.5 - 1 for f in drawn}
    results = {name: judge.figures(made) for name, made in sets.items()}
    for name, figures in results.items():
        typer.echo(f"{name:10} " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    (out / "figures.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    strips = [made[shown[i : i + 12]] for i in range(0, len(shown), 12) for made in sets.values()]
    sheet(strips, out / "compare.png", zoom=2)
    sheet(list(torch.split(sets[drawn[-1].stem], 18)), out / "all.png")


if __name__ == "__main__":
    app()
