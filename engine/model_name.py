"""What schedules call a model: a name that was given, or one made of its folder's, which never fails."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from registry.document import NAME_RULE, is_name
from registry.errors import InvalidInput

LONGEST = 64
DIGITS = 8  # of the fingerprint, where a folder's name alone would say less than it did
_HUB = "models--"  # a hub's cache has models--ORGANISATION--NAME/snapshots/COMMIT


def given_name(name: str) -> str:
    """Raises `InvalidInput` unless schedules can call a model so."""
    if not is_name(name):
        raise InvalidInput(f"{name[:80]!r} cannot name a model; give {NAME_RULE}", param="name")
    return name


def folder_name(root: Path, fingerprint: str) -> str:
    """A name for the model in this folder: lower case, accents dropped, `-` for whatever else a name cannot have.

    A snapshot in a hub's cache is called as its repository is. Where letters were lost (another script), or the end of a name
    that is too long, digits of the fingerprint take their place: no two models come to one name by that.
    """
    root = root.resolve()
    folder = root.parent.parent if root.parent.name == "snapshots" else root
    name = folder.name.rpartition("--")[2] if folder.name.startswith(_HUB) else folder.name
    if is_name(name.lower()):
        return name.lower()
    letters = [letter for letter in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(letter)]
    slug = re.sub(r"[^a-z0-9._-]+", "-", "".join(letters)).strip("._-")
    lost = any(letter.isalnum() and not letter.isascii() for letter in letters)
    if slug and not lost and len(slug) <= LONGEST:
        return slug
    kept = slug[: LONGEST - DIGITS - 1].rstrip("._-")
    return f"{kept or 'model'}-{fingerprint.removeprefix('sha256:')[:DIGITS]}"
