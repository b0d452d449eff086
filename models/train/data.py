"""Noto emoji as training data: fetch the images, choose them by name, composite on white, write captions.

python -m models.train.data                                 # 74 MB by `npm pack` into .flexi/emoji
python -m models.train.data --archive emoji-datasource-google-16.0.0.tgz
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from registry.commands.command_line import run_command

PACKAGE = "emoji-datasource-google@16.0.0"
FOLDER = Path(".flexi/emoji")
SIZE = 64

# What 64 pixels can show and a stranger can name. No people (skin tones), flags, clocks, letters or signs.
SUBCATEGORIES = (
    *("face-", "cat-face", "monkey-face", "heart", "emotion", "animal-", "plant-", "food-", "drink", "dishware"),
    *("place-building", "transport-ground", "transport-water", "transport-air", "sky", "event", "award-medal"),
    *("sport", "musical-instrument", "geometric"),
)

# Unicode names that nobody would type, and the prompt that stands for them.
PLAIN = {
    "heavy black heart": "red heart",
    "black sun with rays": "sun",
    "white medium star": "star",
    "high voltage sign": "lightning bolt",
    "lady beetle": "ladybug",
    "front-facing baby chick": "chick",
    "large blue diamond": "blue diamond",
    "large orange diamond": "orange diamond",
} | {
    f"large {colour} {shape}": f"{colour} {shape}"
    for colour in ("red", "orange", "yellow", "green", "blue", "purple", "brown")
    for shape in ("circle", "square")
}


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji: the prompt that asks for it, its Unicode name, the short names chat programs use, its picture."""

    prompt: str
    name: str
    aliases: tuple[str, ...]
    subcategory: str
    image: Path


def catalogue(folder: Path = FOLDER) -> dict[str, Emoji]:
    """All emoji that have a picture, by prompt. A short name that is another emoji's prompt is no alias."""
    entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    names = [entry["name"].lower() for entry in entries]
    prompts = {PLAIN.get(name, name) for name in names}
    by_prompt = {}
    for entry, name in zip(entries, names, strict=True):
        image = folder / "img" / "google" / str(SIZE) / entry["image"]
        if not image.exists():
            continue
        short = {alias.replace("_", " ").replace("-", " ") for alias in entry["short_names"]}
        prompt = PLAIN.get(name, name)
        aliases = tuple(sorted({name, *short} - prompts))
        by_prompt[prompt] = Emoji(prompt, name, aliases, entry["subcategory"], image)
    return by_prompt


def chosen(folder: Path, prompts: Path) -> list[Emoji]:
    """The emoji of a prompt file (one prompt a line), in its order."""
    known = catalogue(folder)
    return [known[line] for line in prompts.read_text(encoding="utf-8").splitlines() if line]


def things(folder: Path) -> list[Emoji]:
    """Every emoji of `SUBCATEGORIES`: what the VAE and CLIP are trained on."""
    return [e for e in catalogue(folder).values() if e.subcategory.startswith(SUBCATEGORIES)]


def picture(emoji: Emoji) -> torch.Tensor:
    """An emoji's pixels (3, 64, 64) in [-1, 1], on white: the colour below full transparency must not be learnt."""
    with Image.open(emoji.image) as opened:
        layer = opened.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    pixels = np.asarray(ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def pictures(emoji: list[Emoji]) -> torch.Tensor:
    """The pixels of n emoji, (n, 3, 64, 64) in [-1, 1]."""
    return torch.stack([picture(one) for one in emoji])


def fetch(
    folder: Annotated[Path, typer.Option(help="where emoji.json and img/google/64 go")] = FOLDER,
    archive: Annotated[Path | None, typer.Option(help="the npm package, if it is here already")] = None,
) -> None:
    """Unpack the 64-pixel images and their names from the npm package, fetching it first when it isn't given."""
    folder.mkdir(parents=True, exist_ok=True)
    if archive is None:
        packed = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
        archive = folder / packed.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        for member in tar:
            member.name = member.name.removeprefix("package/")
            if member.name.startswith(("emoji.json", "README", "LICENSE", f"img/google/{SIZE}/")):
                tar.extract(member, folder, filter="data")
    typer.echo(f"{len(catalogue(folder))} emoji in {folder}, {len(things(folder))} of them things")


if __name__ == "__main__":
    run_command(fetch)
