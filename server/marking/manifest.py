"""What a mark says: the definition of a C2PA manifest, from what is known of an image.

C2PA Technical Specification: actions, ingredients. The words for how an image came to be are IPTC's NewsCodes, Digital Source
Type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server import VERSION

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = SOURCE_TYPES + "trainedAlgorithmicMedia"
EDITED = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
GENERATION = "flexiffusion.generation"  # the label of our own assertion
GENERATOR = {"name": "flexiffusion-serve", "version": VERSION}
_PARENT = "source"  # what an action calls the image that was started from


def manifest(facts: Mapping[str, str], *, edited: bool) -> dict[str, Any]:
    """Of an image that was generated, or `edited`: begun from one that somebody sent. facts: what our own assertion holds.

    The image that was started from is named as an ingredient, and not looked into: a manifest that it may have, of unbounded
    size and of a stranger's making, is not carried on.
    """
    if not edited:
        actions = [{"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": GENERATOR}]
    else:
        actions = [
            {"action": "c2pa.opened", "parameters": {"ingredientIds": [_PARENT]}},
            {"action": "c2pa.edited", "digitalSourceType": EDITED, "softwareAgent": GENERATOR},
        ]
    definition: dict[str, Any] = {
        "claim_generator_info": [GENERATOR],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": GENERATION, "data": dict(facts)},
        ],
    }
    if edited:
        definition["ingredients"] = [{"label": _PARENT, "title": "the image to start from", "relationship": "parentOf"}]
    return definition
