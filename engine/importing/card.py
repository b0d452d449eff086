"""The model card of an imported folder: where every weight comes from, so that it can be made again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from engine.usual_guidance import CARD

TOOLS = ("diffusers", "transformers", "safetensors", "torch")
CHECKER = "There is no safety checker in this folder: nobody looks at images before they go out. Put one behind the service."
LICENSE = "The licences of these files hold for this folder too; what they allow is not recorded here."


@dataclass(frozen=True)
class SourceFile:
    """A file that weights were taken from: what it was used as, in words, and the SHA-256 (hex) of all of its bytes."""

    role: str
    path: Path
    sha256: str


def write_card(
    folder: Path,
    name: str,
    what: str,
    sources: Iterable[SourceFile],
    command: str,
    notes: Sequence[str],
    guidance: float | None = None,
) -> None:
    """what: the kind of model, in words. command: what was typed. notes: what whoever uses it should know.

    guidance: the scale that the card of the imported folder says, if it says one.
    """
    said = [] if guidance is None else ["---", "inference:", "  parameters:", f"    guidance_scale: {guidance:g}", "---", ""]
    lines = [
        *said,
        f"# {name}",
        "",
        f"{what}, imported {datetime.now(UTC):%Y-%m-%d %H:%M} UTC as diffusers saves a pipeline.",
        "",
        "| used as | file | SHA-256 |",
        "|---|---|---|",
        *(f"| {source.role} | {_cell(source.path.name)} | `{source.sha256}` |" for source in sources),
        "",
        f"Command: `{command}`",
        "",
        f"Versions: {', '.join(f'{tool} {version(tool)}' for tool in TOOLS)}",
        "",
        *(f"* {note}" for note in notes),
        f"* {LICENSE}",
    ]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
