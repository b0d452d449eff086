"""LoRA files that a test writes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def write_lora(file: Path, networks: dict[str, nn.Module], layers: dict[str, list[str]], seed: int, size: float = 0.3) -> Path:
    """A LoRA of rank 2 in diffusers' layout, of these layers by component; its changes are of the size of the weights."""
    rng = torch.Generator().manual_seed(seed)
    tensors = dict[str, Tensor]()
    for component, names in layers.items():
        for name in names:
            weight = networks[component].get_submodule(name).weight
            assert isinstance(weight, Tensor)
            down = torch.randn(2, *weight.shape[1:], generator=rng)
            up = size * weight.std().item() * torch.randn(weight.shape[0], 2, *(1 for _ in weight.shape[2:]), generator=rng)
            tensors |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
    save_file(tensors, file)
    return file


def changed_by_hand(network: nn.Module, file: Path, component: str, scale: float) -> None:
    """Add such a LoRA to a network in place: the formula, written down once more."""
    from safetensors.torch import load_file

    tensors = load_file(file)
    for name in {key.rpartition(".lora_")[0] for key in tensors if key.startswith(f"{component}.")}:
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        weight = network.get_submodule(name.removeprefix(f"{component}.")).weight
        assert isinstance(weight, Tensor)
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
