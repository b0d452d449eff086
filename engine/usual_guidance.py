"""The guidance scale of a model where nobody says one: what its card says, else what diffusers gives its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.guidance import MAX_SCALE, OFF, meant
from engine.notice import Notice

CARD = "README.md"
PLACE = ("inference", "parameters", "guidance_scale")  # where the metadata of a card on the Hub has it


class CardGuidance(NamedTuple):
    """scale: the one that a card says, if it says a possible one. notice: what is to be said of an impossible one."""

    scale: float | None = None
    notice: Notice | None = None


def usual_guidance(said: float | None, embedded: float | None, distilled: bool, pipeline: float) -> float:
    """The scale of a model that can be guided.

    said: by its card. embedded: diffusers' for a network that takes the scale as an input. distilled: to few steps without
    guidance. pipeline: diffusers' for its pipeline.
    """
    if said is not None:
        return meant(said)
    return embedded or (OFF if distilled else pipeline)


def card_guidance(root: Path) -> CardGuidance:
    """What the metadata of the card in a model's folder says of the scale, as the Hub's cards say it:

    `inference: {parameters: {guidance_scale: 3}}` in the YAML at the beginning of README.md. A card changes no image, so it is
    no part of a fingerprint, and one that cannot be read stops nothing: a notice says so.
    """
    try:
        said = _said(root / CARD)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        return CardGuidance(notice=_ignored(f"{CARD} cannot be read ({error})"))
    if said is None:
        return CardGuidance()
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= MAX_SCALE:  # nor is nan
        return CardGuidance(notice=_ignored(f"{CARD} says guidance_scale {said!r}, not a number from 0 to {MAX_SCALE:g}"))
    return CardGuidance(float(said))


def _said(card: Path) -> object:
    import yaml
    from huggingface_hub import metadata_load

    if not card.is_file():
        return None
    try:
        said: object = metadata_load(card)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    for key in PLACE:
        said = said.get(key) if isinstance(said, dict) else None
    return said


def _ignored(what: str) -> Notice:
    return Notice("card_guidance_ignored", f"{what}: the usual scale of the pipeline is taken")
