"""A component's network with the weights of its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engine.config import reason
from engine.folder import Folder
from registry.errors import Unsupported

if TYPE_CHECKING:
    import torch


@contextmanager
def shown(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder that holds these files under these names and nothing else, for a library that looks for files by itself."""
    with TemporaryDirectory(prefix="flexi-") as folder:
        for name, file in files.items():
            (Path(folder) / name).symlink_to(file.absolute())
        yield Path(folder)


def read_weights(family: Any, files: Folder, component: str, **options: Any) -> Any:
    """A component's network with its weights; `family` is its diffusers or transformers class.

    Pickles (.bin) are read by torch with `weights_only`, as both libraries do: they hold tensors and run nothing.

    Raises `NotFound` for weights that are not there, and `Unsupported` for those that cannot be read, or are not exactly what
    the configuration asks for: diffusers and transformers would draw the rest at random.
    """
    safe = files.weights(component).format.suffix == "safetensors"
    with shown(files.files(component)) as folder:
        try:
            network, report = family.from_pretrained(folder, output_loading_info=True, use_safetensors=safe, **options)
        except Exception as error:  # every library and file format has its own
            said = reason(error).replace(str(folder), str(files.path(component)))
            message = f"the weights of {component} cannot be read, or do not fit its configuration: {said}"
            raise Unsupported(message, param="model") from error
    for what, said in (("missing_keys", "lack"), ("unexpected_keys", "have besides what its configuration asks for")):
        names = sorted(report[what])
        if names and not (what == "unexpected_keys" and component.startswith("text_encoder")):  # theirs are harmless leftovers
            message = f"the weights of {component} {said}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
            raise Unsupported(message, param="model")
    return network


def read_weights_to(device: torch.device, family: Any, files: Folder, component: str, **options: Any) -> Any:
    """`read_weights` of a diffusers class, whose tensors never were anywhere but on `device`: each is made there, without a
    value, and takes its own from the file, in the type that it has there.

    transformers refuses this without a package of its own for devices. On the device `meta` nothing is read: see
    `without_weights`.
    """
    if device.type == "meta":
        return without_weights(family, files, component, **options)
    with nullcontext() if device.type == "cpu" else device:
        # without accelerate, which `low_cpu_mem_usage` is for, diffusers leaves values out as well
        return read_weights(family, files, component, low_cpu_mem_usage=False, **options)


def without_weights(family: Any, files: Folder, component: str, dtype: torch.dtype) -> Any:
    """A component's network on the device `meta`, by its configuration: `family` is its diffusers or transformers class.

    Raises `NotFound` and `Unsupported`.
    """
    import torch
    from torch import nn

    config = files.config(component)
    try:
        with torch.device("meta"):
            if hasattr(family, "load_config"):  # diffusers
                network = family.from_config(config)
            else:
                network = family(family.config_class.from_dict(config))
    except Exception as error:  # every library has its own
        raise Unsupported(f"{component} cannot be built: {reason(error)}", param="model") from error
    read = network.state_dict().keys()
    types = {name: buffer.dtype for name, buffer in network.named_buffers() if name not in read}  # made, and not converted
    nn.Module.to(network, dtype)  # diffusers' own warns of what has no weights
    for name, own in types.items():
        owner, _, field = name.rpartition(".")
        setattr(network.get_submodule(owner), field, network.get_buffer(name).to(own))
    kept = (
        (getattr(family, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    )  # as `from_pretrained` has it
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in kept:
            module.float()
    return network


def networks(part: Any) -> Iterator[torch.nn.Module]:
    """All networks in an object of dataclasses, such as a loaded model."""
    from torch import nn

    if isinstance(part, nn.Module):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from networks(getattr(part, field.name))
