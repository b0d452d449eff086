"""Which font files are used: free ones that draw Latin letters, one or two faces a family, the families split in two.

    python -m models.train.glyphs.fonts fonts-a fonts-b --out .flexi/glyphs/faces.json

Looks through folders of font files, a checkout of google/fonts for example. A face is taken if its own name table, or a
licence file beside it, says that it's under the SIL Open Font License or the Apache License 2.0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from fontTools.ttLib import TTFont, TTLibError

from models.train.glyphs import CLASSES
from registry.commands.command_line import run_command

SUFFIXES = {".ttf", ".otf"}
LICENCES = {
    "OFL-1.1": re.compile(r"open font license|scripts\.sil\.org|openfontlicense|\bOFL\b", re.IGNORECASE),
    "Apache-2.0": re.compile(r"apache", re.IGNORECASE),
}
# Barcodes, boxes, dots, pictures: fonts whose glyphs are not the letters that their character map says they are.
NOT_LETTERS = re.compile(
    r"barcode|redacted|blank|icon|symbol|emoji|dingbat|ornament|music|flow (block|circular|rounded)|wavefont|linefont|yarndings"
    r"|material|awesome|braille|signwriting|jsmath|blocks?$|hieroglyph|math\b|phaistos|adobe notdef|tiny5 dots|libre ?code",
    re.IGNORECASE,
)
BOLD = 600  # OpenType's usWeightClass from which on a second face of a family is taken
HELD_OUT = 5  # one family in so many


@dataclass(frozen=True, slots=True)
class Face:
    """A font file: its family, its weight (100 to 900), its licence (SPDX), and on which side of the split it is."""

    family: str
    weight: int
    licence: str
    held_out: bool
    file: str


def held_out(family: str) -> bool:
    """Which side of the split, by a digest of the first word of the family's name.

    So all of a superfamily ("Noto Sans", "Noto Serif", "Alegreya SC") are on one side: nothing of it is known to the other.
    """
    word = re.split(r"[^0-9a-z]+", family.lower())[0]
    return int(hashlib.sha256(word.encode()).hexdigest(), 16) % HELD_OUT == 0


def _named(font: TTFont, *numbers: int) -> str:
    """The English text of the first of these entries of the name table that is there."""
    for number in numbers:
        if text := font["name"].getDebugName(number):
            return str(text).strip()
    return ""


def _licence(font: TTFont, file: Path) -> str | None:
    """The licence that the font itself names, or that a file beside it is."""
    texts = [f"{_named(font, 13)} {_named(font, 14)}"]
    beside = [path for folder in (file.parent, file.parent.parent) for path in folder.glob("*") if path.is_file()]
    texts += [
        path.read_text(errors="replace")[:2000] for path in beside if re.search(r"ofl|licen[sc]e|copying", path.name, re.I)
    ]
    for text in texts:
        for licence, pattern in LICENCES.items():
            if pattern.search(text):
                return licence
    return None


def _face(file: Path) -> Face | None:
    """What a file holds, or None for one that cannot be used: unreadable, slanted, not free, without one of the characters."""
    try:
        with TTFont(file, lazy=True) as font:
            characters = font.getBestCmap() or {}
            upright = not font["OS/2"].fsSelection & 1 and font["post"].italicAngle == 0
            licence = _licence(font, file)
            family = re.sub(r"^TypoPRO ", "", _named(font, 16, 1))
            weight = int(font["OS/2"].usWeightClass)
    except (TTLibError, OSError, struct.error, LookupError, AttributeError, ValueError, AssertionError, TypeError):
        return None
    if (
        not family
        or not upright
        or licence is None
        or NOT_LETTERS.search(family)
        or any(ord(c) not in characters for c in CLASSES)
    ):
        return None
    return Face(family, weight, licence, held_out(family), str(file))


def chosen(faces: Iterator[Face]) -> list[Face]:
    """Of each family (spaces and case don't count) the face nearest to regular, and its boldest if it's bold."""
    families: dict[str, list[Face]] = {}
    for face in faces:
        families.setdefault(re.sub(r"[^0-9a-z]", "", face.family.lower()), []).append(face)
    taken = []
    for _, members in sorted(families.items()):
        regular = min(members, key=lambda face: (abs(face.weight - 400), face.file))
        boldest = max(members, key=lambda face: (face.weight, face.file))
        taken += [regular, boldest] if boldest.weight >= max(BOLD, regular.weight + 100) else [regular]
    return taken


def main(
    folders: Annotated[list[Path], typer.Argument(help="looked through for font files")],
    out: Annotated[Path, typer.Option(help="the list of the chosen faces")] = Path(".flexi/glyphs/faces.json"),
) -> None:
    """Choose the faces and write the list."""
    logging.disable()  # fontTools remarks on tables that nothing here reads
    files = (file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES)
    faces = chosen(face for face in map(_face, files) if face)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(face) for face in faces], indent=0) + "\n", encoding="utf-8")
    families = {face.family: face for face in faces}
    print(
        f"{len(faces)} faces of {len(families)} families, {sum(face.held_out for face in families.values())} of them held out"
    )
    for licence in LICENCES:
        print(f"{licence}: {sum(face.licence == licence for face in families.values())} families")


if __name__ == "__main__":
    run_command(main)
