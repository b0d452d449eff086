"""Judge the glyph models: statistics of held-out real pictures, samples, Fréchet distances, accuracy, nearest neighbours.

    python -m models.train.glyphs.judge real models/glyphs-ldm --size 64
    python -m models.train.glyphs.judge draw models/glyphs-ldm --guidance 2 --count 4960 --out runs/ldm-2.npy
    python -m models.train.glyphs.judge compare models/glyphs-ldm runs/ldm-2.npy --out runs/ldm-2

Distances are in the features of MODEL/features, to all held-out pictures; of `compare`'s lines each is of as many pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image

from engine import sampler
from engine.loading import load
from evaluation import Extractor, bundled, extractor, frechet_distance, gaussian
from evaluation.statistics import Statistics
from models.train.glyphs import CLASSES, data
from registry.commands.command_line import command_line

BATCH = 62
app = command_line(help=__doc__ or "")
Glyphs = Annotated[Path, typer.Option(help="folder made by models.train.glyphs.draw")]
Grey = NDArray[np.uint8]  # pictures (n, side, side)


def as_images(pictures: Grey) -> torch.Tensor:
    """Grey levels (n, h, w) as images (n, 3, h, w) in [0, 1]."""
    return (torch.from_numpy(pictures).float() / 255)[:, None].expand(-1, 3, -1, -1)


def real_pictures(side_of: data.Glyphs, chosen: torch.Tensor, side: int) -> Grey:
    """Real pictures by number, as a model would have drawn them."""
    parts = [(side_of.batch(part, side) * 127.5 + 127.5).round().byte()[:, 0] for part in chosen.split(1024)]
    return torch.cat(parts).numpy()


def spread(count: int, of: int, seed: int = 0) -> torch.Tensor:
    """`count` different numbers below `of`, at random."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]


def in_turn(glyphs: data.Glyphs, count: int, seed: int = 0) -> torch.Tensor:
    """Numbers of `count` pictures at random, one of each class in turn: as many of each as a file of drawn ones has."""
    rng, labels = np.random.default_rng(seed), glyphs.labels.numpy()
    return torch.tensor([int(rng.choice(np.flatnonzero(labels == n % len(CLASSES)))) for n in range(count)])


@app.command()
def real(
    model: Annotated[Path, typer.Argument(help="the model's folder; its features/real.npz is written")],
    size: Annotated[int, typer.Option(help="64 or 32")],
    glyphs: Glyphs = data.FOLDER,
) -> None:
    """Statistics of the real pictures of all families held out."""
    held_out, looks = data.load(glyphs, held_out=True), extractor(bundled(model))
    pictures = real_pictures(held_out, torch.arange(len(held_out)), size)
    features = np.concatenate([looks.images(as_images(part)) for part in np.array_split(pictures, len(pictures) // 1024)])
    Statistics(gaussian(features), len(features), looks.name, (size, size)).write(bundled(model) / "real.npz")
    print(f"{len(features)} pictures at {size}×{size}, in features of {looks.name}")


@app.command()
def draw(
    model: Annotated[Path, typer.Argument(help="pipeline folder")],
    out: Annotated[Path, typer.Option(help="the pictures, a .npy file (n, h, w); of the classes in turn")],
    count: int = 62 * 16,
    steps: int = 50,
    guidance: float = 1.0,
    seed: Annotated[int, typer.Option(help="of the first picture; the others' follow")] = 0,
) -> None:
    """Draw with the unaccelerated teacher, DDIM."""
    loaded = load(model)
    program = loaded.compile(loaded.teacher(steps))
    drawn = []
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            noise = torch.stack([loaded.noise(seed + number) for number in numbers])
            names = [CLASSES[number % len(CLASSES)] if loaded.prompts.guides else "" for number in numbers]
            condition = loaded.encode(names)
            negative = loaded.negative([""] * len(names)) if guidance > 1 else None
            images = loaded.decode(sampler.generate(loaded.network, program, noise, condition, negative, guidance))
            drawn.append((images[:, 0] * 255).round().byte())
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, torch.cat(drawn).numpy())


@app.command()
def compare(
    model: Annotated[Path, typer.Argument(help="pipeline folder")],
    pictures: Annotated[Path, typer.Argument(help="a file that draw wrote")],
    out: Annotated[Path, typer.Option(help="folder for figures.json, samples.png and neighbours.png")],
    glyphs: Glyphs = data.FOLDER,
    conditional: Annotated[bool, typer.Option(help="whether the pictures are of the classes in turn")] = True,
) -> None:
    """Figures of drawn pictures beside those of as many real training pictures; the nearest real ones of some."""
    drawn, looks = np.load(pictures), extractor(bundled(model))
    count, side = len(drawn), drawn.shape[-1]
    training, held_out = (data.load(glyphs, aside) for aside in (False, True))
    kept = Statistics.read(bundled(model) / "real.npz").fitting(looks, (side, side))
    seen, new = (in_turn(part, count) if conditional else spread(count, len(part)) for part in (training, held_out))
    real_seen = real_pictures(training, seen, side)
    figures: dict[str, object] = {"count": count}
    features = looks.images(as_images(drawn))
    figures["frechet_to_held_out"] = frechet_distance(features, kept)
    figures["frechet_of_training_pictures"] = frechet_distance(looks.images(as_images(real_seen)), kept)
    figures["frechet_of_held_out_pictures"] = frechet_distance(
        looks.images(as_images(real_pictures(held_out, new, side))), kept
    )
    if conditional:
        hits = looks.recognised(as_images(drawn), [CLASSES[number % len(CLASSES)] for number in range(count)])
        figures["accuracy"] = float(np.mean(hits)) if hits is not None else None
    hits = looks.recognised(as_images(real_pictures(held_out, new, side)), [CLASSES[n] for n in held_out.labels[new].tolist()])
    figures["accuracy_of_held_out_pictures"] = float(np.mean(hits)) if hits is not None else None
    out.mkdir(parents=True, exist_ok=True)
    figures |= neighbours(drawn, training, held_out, looks, out / "neighbours.png")
    sheet(drawn[: len(CLASSES) * 6].reshape(-1, 31, side, side), out / "samples.png")
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def nearest(queries: NDArray[np.float32], among: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each row of queries (q, d) the distance to the nearest row of `among` (n, d), root mean square, and its number."""
    best, which = np.full(len(queries), np.inf, np.float32), np.zeros(len(queries), np.int64)
    squares = (queries**2).sum(1)[:, None]
    for start in range(0, len(among), 8192):
        part = among[start : start + 8192].astype(np.float32)
        squared = squares + (part**2).sum(1) - 2 * queries @ part.T
        here = squared.argmin(1)
        value = squared[np.arange(len(queries)), here]
        better = value < best
        best[better], which[better] = value[better], start + here[better]
    return np.sqrt(np.maximum(best, 0) / queries.shape[1]), which


def neighbours(
    drawn: Grey, training: data.Glyphs, held_out: data.Glyphs, looks: Extractor, file: Path, some: int = 248
) -> dict[str, object]:
    """Distances to the nearest training picture, in pixels and in features: of drawn pictures and of held-out real ones.

    A model that has memorised its pictures draws some that are nearer to a training picture than real new ones are. The picture
    shows 16 drawn ones, the nearest in pixels below each, and the nearest in features below that.
    """
    side = drawn.shape[-1]
    all_real = real_pictures(training, torch.arange(len(training)), side)
    flat = all_real.reshape(len(all_real), -1)
    sets = {"drawn": drawn[spread(some, len(drawn), 1).numpy()]}
    sets["held_out"] = real_pictures(held_out, spread(some, len(held_out), 1), side)
    seen = np.concatenate([looks.images(as_images(part)) for part in np.array_split(all_real, 1 + len(all_real) // 1024)])
    found: dict[str, object] = {}
    for name, pictures in sets.items():
        near, which = nearest(pictures.reshape(some, -1).astype(np.float32), flat)
        near_seen, which_seen = nearest(looks.images(as_images(pictures)).astype(np.float32), seen.astype(np.float32))
        for kind, values in (("pixels", near / 255), ("features", near_seen)):
            quantiles = np.quantile(values, (0.01, 0.1, 0.5))
            found[f"nearest_{kind}_of_{name}_1_10_50_percent"] = [round(float(q), 4) for q in quantiles]
        if name == "drawn":
            lines = [pictures[:16], all_real[which[:16]], all_real[which_seen[:16]]]
            sheet(np.stack(lines), file)
    return found


def sheet(lines: Grey, file: Path, gap: int = 2) -> None:
    """Write a picture of lines of pictures (lines, n, side, side)."""
    padded = np.pad(lines, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    rows, columns, side, _ = padded.shape
    Image.fromarray(padded.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)).save(file, optimize=True)


if __name__ == "__main__":
    app()
