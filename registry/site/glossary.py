"""The glossary's words for pages: `python -m registry.site.glossary` makes a script of docs/glossary.md; a test compares."""

from __future__ import annotations

import json
import re
from pathlib import Path

from registry.site import ASSETS

SOURCE = Path(__file__).parents[2] / "docs" / "glossary.md"
TARGET = ASSETS / "console" / "glossary.js"
HEAD = """// Words and what they mean, from docs/glossary.md. Not written by hand: python -m registry.site.glossary
// biome-ignore-all format: it is data
export const GLOSSARY = """


def meanings(page: str) -> dict[str, str]:
    """Meaning by word; a line of several words is of each of them. Without marks of Markdown."""
    rows = re.findall(r"^\| (?!word \||-)([^|]+?) \| ([^|]+?) \|", page, re.MULTILINE)
    return {word.replace("`", ""): plain(meaning) for words, meaning in rows for word in words.split(", ")}


def plain(text: str) -> str:
    """Text without Markdown's marks for code, stress and links."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "").replace("*", "")


def script(page: str) -> str:
    """The module for browsers."""
    return f"{HEAD}{json.dumps(meanings(page), indent=1, ensure_ascii=False, sort_keys=True)};\n"


if __name__ == "__main__":
    TARGET.write_text(script(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
