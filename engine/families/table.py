"""All families, and which one a folder or a configuration is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.families.dit import DIT
from engine.families.family import Family
from engine.families.flux import FLUX
from engine.families.sd3 import SD3
from engine.families.unet import UNET
from engine.folder import Folder
from registry.errors import Unsupported

FAMILIES: Sequence[Family] = (UNET, DIT, SD3, FLUX)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a network's configuration; one that names no class may be a UNet's, whose own check says what it is not.

    Raises `Unsupported` for a transformer of none.
    """
    name = config.get("_class_name")
    found = next((family for family in FAMILIES if name in family.classes), UNET)
    if found is UNET and isinstance(name, str) and "Transformer" in name:
        raise _unknown("transformer", name)
    return found


def family_in(files: Folder) -> Family:
    """The family of a folder's network, by the classes that its index names. Raises `Unsupported` for a class of none."""
    component = files.network
    name = files.component(component)
    found = next((family for family in FAMILIES if family.component == component and name in family.classes), None)
    if found is None and component != UNET.component:
        raise _unknown(component, name)
    return found or UNET  # whose own check says what is wrong with it


def _unknown(component: str, name: str | None) -> Unsupported:
    known = sorted({name for family in FAMILIES if family.component == component for name in family.classes})
    return Unsupported(f"{component} is {name}, this version runs {' or '.join(known)}", param="model")
