"""The guidance scale of a model where nobody says one: what its card says, else what diffusers gives its pipeline."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from engine.guidance import MAX_SCALE, OFF, meant
from engine.notice import Notice

log = logging.getLogger(__name__)

CARD = "README.md"
PLACE = ("inference", "parameters", "guidance_scale")  # where the metadata of a card on the Hub has it


class CardGuidance(NamedTuple):
    """What a card says: a possible scale, or a notice of an impossible one, or nothing."""

    scale: float | None = None
    notice: Notice | None = None


def usual_guidance(card: CardGuidance, embedded: float | None, distilled: bool, pipeline: float) -> tuple[float, Notice | None]:
    """The scale of a model that can be guided, and what is to be said of the card's.

    card: what its card says. embedded: diffusers' for a network that takes the scale as an input. distilled: to few steps, and
    unless it takes the scale as an input, without guidance, whatever a card says, which may be that of the model that it was
    made of. pipeline: diffusers' for its pipeline.
    """
    scale, notice = card
    if distilled and embedded is None:
        above = scale is not None and scale > OFF
        return OFF, _ignored(f"{CARD} says guidance_scale {scale:g} of a distilled model") if above else notice
    if scale is not None:
        return meant(scale), notice
    return (pipeline if embedded is None else embedded), notice


def card_guidance(root: Path) -> CardGuidance:
    """What the metadata of the card in a model's folder says of the scale, as the Hub's cards say it:

    `inference: {parameters: {guidance_scale: 3}}` in the YAML at the beginning of README.md. A card changes no image, so it is
    no part of a fingerprint, and one that cannot be read stops nothing: the log says so.
    """
    try:
        said = _said(root / CARD)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        log.warning("the metadata of %s cannot be read, and so no guidance_scale in it: %s", root / CARD, error)
        return CardGuidance()
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
    return Notice("card_guidance_ignored", f"{what}: it is not taken")
