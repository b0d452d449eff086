"""All families, and which one a folder or a configuration is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.families.dit import DIT
from engine.families.family import Family
from engine.families.flux import FLUX
from engine.families.pixart import PIXART
from engine.families.sd3 import SD3
from engine.families.unet import UNET
from engine.folder import Folder
from engine.text_layouts import OLD_CLASS
from registry.errors import Unsupported

FAMILIES: Sequence[Family] = (UNET, DIT, PIXART, SD3, FLUX)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a network's configuration; one that names no class may be a UNet's, whose own check says what it is not.

    Raises `Unsupported` for a transformer of none.
    """
    name = config.get("_class_name")
    found = _of_old_class(config) if name == OLD_CLASS else next((one for one in FAMILIES if name in one.classes), UNET)
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
    if name == OLD_CLASS:
        return _of_old_class(files.config(component))
    return found or UNET  # whose own check says what is wrong with it


def _of_old_class(config: Mapping[str, Any]) -> Family:
    """Of several kinds that had one class, as diffusers tells them apart; others are DiT's to refuse."""
    return PIXART if config.get("norm_type") == "ada_norm_single" else DIT


def _unknown(component: str, name: str | None) -> Unsupported:
    known = sorted({name for family in FAMILIES if family.component == component for name in family.classes})
    return Unsupported(f"{component} is {name}, this version runs {' or '.join(known)}", param="model")
