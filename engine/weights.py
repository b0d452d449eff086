"""A component's network with the weights of its folder."""

from __future__ import annotations

from typing import Any

from engine.config import reason
from engine.folder import Folder
from registry.errors import NotFound, Unsupported


def read_weights(family: Any, files: Folder, component: str, **options: Any) -> Any:
    """A component's network with its weights; `family` is its diffusers or transformers class.

    Raises `NotFound` for weights that are not there, and `Unsupported` for those that cannot be read, or are not exactly what
    the configuration asks for: diffusers and transformers would draw the rest at random.
    """
    path = files.path(component)
    try:
        network, report = family.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:  # every library and file format has its own
        if not any(file.suffix in (".safetensors", ".bin") for file in path.glob("*model*")):
            raise NotFound(f"the weights of {component} are missing: {reason(error)}", param="model") from error
        message = f"the weights of {component} are corrupt or do not fit its configuration: {reason(error)}"
        raise Unsupported(message, param="model") from error
    for what, said in (("missing_keys", "lack"), ("unexpected_keys", "have besides what its configuration asks for")):
        names = sorted(report[what])
        if names and not (what == "unexpected_keys" and component.startswith("text_encoder")):  # theirs are harmless leftovers
            message = f"the weights of {component} {said}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
            raise Unsupported(message, param="model")
    return network
