"""Draw every character of every chosen face: `pictures.npy` and `index.npz`, 64×64 grey, black on white.

    python -m models.train.glyphs.draw .flexi/glyphs/faces.json --out .flexi/glyphs

A face is drawn at one size for all its characters, its baseline at one height, so that case can be told. Each picture has
a little of its own size and place, drawn from the family's name and the character: the same picture every time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.train.glyphs import CLASSES
from models.train.glyphs.fonts import Face
from registry.commands.command_line import run_command

SIZE = 64
SUPER = 4  # drawn so many times larger, then averaged: every grey level is an area, no hinting
INSIDE = 56  # pixels that the characters of a face may take, together, in height and each in width
SMALLEST = 0.85  # of the random sizes
SHIFT = 3.0  # pixels at most, to every side
CASED = "abdefghijlmnqrty"  # lower-case letters whose form is another one than the capital's
Grey = NDArray[np.uint8]


def box(font: ImageFont.FreeTypeFont, text: str) -> tuple[float, float, float, float]:
    """Ink of a text, (left, top, right, bottom) from the pen on the baseline."""
    return font.getbbox(text, anchor="ls")


class Pen:
    """Draws the characters of one face. Raises `ValueError` for a face of which a character has no ink."""

    def __init__(self, face: Face) -> None:
        self.face = face
        trial = ImageFont.truetype(face.file, 100, layout_engine=ImageFont.Layout.BASIC)
        boxes = np.array([box(trial, c) for c in CLASSES])
        left, top, right, bottom = boxes.T
        if (right <= left).any() or (bottom <= top).any():
            raise ValueError(f"{face.file} draws nothing for some characters")
        height, width = bottom.max() - top.min(), (right - left).max()
        self.scale = 100 * INSIDE / max(height, width)
        self.middle = (top.min() + bottom.max()) / 2 * self.scale / 100  # of the face, from the baseline

    def draw(self, character: str) -> Grey:
        """One character (64, 64), 255 is white."""
        digest = hashlib.sha256(f"{self.face.family} {self.face.weight} {character}".encode()).digest()
        size, x, y = np.frombuffer(digest[:12], dtype=np.uint32) / 2**32
        scale = self.scale * (SMALLEST + (1 - SMALLEST) * size)
        font = ImageFont.truetype(self.face.file, scale * SUPER, layout_engine=ImageFont.Layout.BASIC)
        left, _, right, _ = box(font, character)
        canvas = Image.new("L", (SIZE * SUPER, SIZE * SUPER), 255)
        half = SIZE * SUPER / 2
        middle = self.middle * scale / self.scale * SUPER
        place = half - (left + right) / 2 + (2 * x - 1) * SHIFT * SUPER, half - middle + (2 * y - 1) * SHIFT * SUPER
        ImageDraw.Draw(canvas).text(place, character, fill=0, font=font, anchor="ls")
        return np.asarray(canvas.reduce(SUPER))


def trimmed(picture: Grey) -> Grey:
    """The ink of a picture, stretched to 24×24: what is left when size and place are taken away."""
    inked = picture < 128
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    if not len(rows):
        return np.full((24, 24), 255, np.uint8)
    ink = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return np.asarray(ink.resize((24, 24), Image.Resampling.BOX))


def alike(a: Grey, b: Grey) -> bool:
    """Whether two pictures are of one form."""
    return float(np.abs(trimmed(a).astype(float) - trimmed(b)).mean()) < 16


def usable(pictures: dict[str, Grey]) -> dict[str, Grey]:
    """Without what isn't what it says: nothing of a face of boxes or blanks, no small letters of one that has capitals only."""
    ink = {c: float((255 - p).mean()) / 255 for c, p in pictures.items()}
    if min(ink.values()) < 0.004 or max(ink.values()) > 0.7:
        return {}
    distinct = {trimmed(pictures[c]).tobytes() for c in "AEGHMRSW2359"}
    if len(distinct) < 12 or sum(alike(pictures["H"], pictures[c]) for c in "AEGMRSW") > 2:
        return {}
    if sum(alike(pictures[c], pictures[c.upper()]) for c in CASED) >= len(CASED) / 4:
        return {c: p for c, p in pictures.items() if not c.islower()}
    return pictures


def main(
    faces: Annotated[Path, typer.Argument(help="the list that models.train.glyphs.fonts made")],
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path(".flexi/glyphs"),
) -> None:
    """Draw all, leave out what is no letter or is there already, and write FONTS.txt: what was used."""
    listed = [Face(**fields) for fields in json.loads(faces.read_text(encoding="utf-8"))]
    pictures: list[Grey] = []
    labels: list[int] = []
    numbers: list[int] = []
    used: list[Face] = []
    seen: set[bytes] = set()
    dropped: Counter[str] = Counter()
    for face in listed:
        try:
            pen = Pen(face)
            drawn = usable({c: pen.draw(c) for c in CLASSES})
        except (OSError, ValueError) as error:  # FreeType's words for a broken glyph
            dropped[type(error).__name__] += 1
            continue
        form = b"".join(trimmed(drawn[c]).tobytes() for c in "RSG258" if c in drawn)
        if not drawn or form in seen:
            dropped["twice" if drawn else "no letters"] += 1
            continue
        seen.add(form)
        pictures += drawn.values()
        labels += [CLASSES.index(c) for c in drawn]
        numbers += [len(used)] * len(drawn)
        used.append(face)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "pictures.npy", np.stack(pictures))
    aside = np.array([face.held_out for face in used])
    np.savez(out / "index.npz", label=np.array(labels), face=np.array(numbers), held_out=aside[numbers])
    families = {face.family: face for face in used}
    lines = [f"{f.family}\t{f.licence}\t{'held out' if f.held_out else 'training'}" for _, f in sorted(families.items())]
    (out / "FONTS.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(pictures)} pictures, {int(aside[numbers].sum())} of them held out; {len(used)} faces of {len(families)} families"
    )
    print(f"families held out: {sum(f.held_out for f in families.values())}; faces left out: {dict(dropped)}")


if __name__ == "__main__":
    run_command(main)
