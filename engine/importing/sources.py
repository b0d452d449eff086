"""Where the weights of an import come from: a single file, or a folder as diffusers saves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from engine.config import complete
from engine.folder import Folder
from engine.importing.configs import copy_configs, write_configs
from engine.importing.kinds import EMA, PREDICTIONS, Detected, has_ema, refuse_foreign
from engine.importing.layouts import PARTS, autoencoder, converted, is_autoencoders, saved
from engine.importing.networks import networks
from engine.importing.tensor_file import TensorFile, open_tensors
from registry.errors import InvalidInput, Unsupported

# What trainers leave in a file and nobody reads again: tables of noise levels, and marks.
BY_THE_WAY = (EMA, "betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "logvar", "lvlb_weights", "scale_factor",
              "denoiser.", "v_pred", "ztsnr", "callbacks.", "global_step")  # fmt: skip


class ImportSource(Protocol):
    """Weights and configurations of a model."""

    @property
    def files(self) -> list[TensorFile]:
        """All files of weights that were opened."""

    def write_configs(self, folder: Path) -> None:
        """Everything of a pipeline folder but its weights."""

    def weights(self, component: str, made: Folder, values: bool) -> dict[str, Tensor]:
        """Of a network, by the names that its library loads; a text encoder's perhaps without the model around its layers.

        Without `values` only shapes and types, on the meta device.

        made: the folder with the configurations.
        """


@dataclass(frozen=True)
class SingleFile(ImportSource):
    """A checkpoint of Stable Diffusion 1, 2 or XL as its makers publish it, everything in one file.

    config: a folder with the configurations of its like; without one they are those of `detected`, the published ones.
    """

    file: TensorFile
    detected: Detected | None
    config: Folder | None
    prediction: str
    size: int | None
    ema: bool

    @property
    @override
    def files(self) -> list[TensorFile]:
        return [self.file]

    @override
    def write_configs(self, folder: Path) -> None:
        if self.config is not None:
            copy_configs(self.config, folder)
        elif self.detected is not None:
            write_configs(folder, self.detected.architecture, self.prediction, self.detected.zero_snr, self.size)

    @override
    def weights(self, component: str, made: Folder, values: bool) -> dict[str, Tensor]:
        if component not in PARTS:
            raise Unsupported(f"no single file has a {component}: name a folder of Stable Diffusion", param="config")
        names = [name for name in self.file.shapes if name.startswith(PARTS[component])]
        if not names:
            advice = ": give one with --vae" if component == "vae" else " (a UNet alone, or without its text encoder?)"
            raise Unsupported(f"{self.file.path} has no {component}{advice}", param="source")
        stands_for = {name: self._averaged(name) if component == "unet" else name for name in names}
        tensors = _taken(self.file, stands_for, values)
        return converted(component, tensors, network_config(made, component), self.file.path)

    def _averaged(self, name: str) -> str:
        """The tensor that stands for one of the UNet's: with `ema` its average, under a name without dots."""
        if not self.ema:
            return name
        average = EMA + name.removeprefix("model.").replace(".", "")
        if average not in self.file.shapes:
            raise Unsupported(f"{self.file.path} has averages (model_ema), but none of {name}", param="ema")
        return average

    def unused(self) -> list[str]:
        """Names of tensors that belong to no network of the model, and are not what trainers usually leave behind."""
        read = tuple(start for starts in PARTS.values() for start in starts)
        return [name for name in self.file.shapes if not name.startswith((*read, *BY_THE_WAY))]


@dataclass(frozen=True)
class PipelineFolder(ImportSource):
    """A folder as diffusers saves it: what is read of it is what the engine would load."""

    folder: Folder
    opened: Mapping[str, list[TensorFile]]

    @property
    @override
    def files(self) -> list[TensorFile]:
        return [file for files in self.opened.values() for file in files]

    @override
    def write_configs(self, folder: Path) -> None:
        copy_configs(self.folder, folder)

    @override
    def weights(self, component: str, made: Folder, values: bool) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for file in self.opened[component]:
            tensors |= _taken(file, {name: name for name in file.shapes}, values)
        return saved(tensors)


def single_file(
    file: TensorFile, detected: Detected | None, config: Folder | None, prediction: str | None, size: int | None, ema: bool
) -> SingleFile:
    """Raises `InvalidInput` for options that the file or the configurations decide, or that must be said and were not."""
    refuse_foreign(file)
    if ema and not has_ema(file):
        raise InvalidInput(f"{file.path} has no averaged weights (model_ema…)", param="ema")
    if detected is None:
        if prediction is not None or size is not None:
            raise InvalidInput("--config says it already", param="prediction" if prediction is not None else "size")
        return SingleFile(file, None, config, "", None, ema)
    known = PREDICTIONS[prediction] if prediction else detected.prediction
    if known is None:
        message = (
            f"{file.path} does not say whether it predicts noise or velocity, and {detected.name} was published with either"
        )
        raise InvalidInput(f"{message}: say --prediction epsilon (512-base models) or v (768 models)", param="prediction")
    if size is None and detected.name == "Stable Diffusion 2" and known == "v_prediction":
        size = 768  # as published: velocity at 768, noise at 512
    return SingleFile(file, detected, None, known, size, ema)


def pipeline_folder(path: Path, allow_pickle: bool, allow_nonfinite: bool = False) -> PipelineFolder:
    """Raises `NotFound` and `Unsupported` for what is missing in a folder, or is a pickle."""
    folder = Folder(path)
    folder.check()
    opened = {
        name: [
            open_tensors(file, "source", allow_pickle, allow_nonfinite)
            for key, file in folder.files(name).items()
            if not key.endswith(".json")
        ]
        for name in networks(folder)
    }
    return PipelineFolder(folder, opened)


def autoencoder_weights(file: TensorFile, made: Folder, values: bool) -> dict[str, Tensor]:
    """Of a file that `--vae` names."""
    own = {name: name for name in file.shapes if is_autoencoders(name)}
    tensors = _taken(file, own, values)
    return autoencoder(tensors, network_config(made, "vae"), file.path)


def network_config(made: Folder, component: str) -> dict[str, Any]:
    """A network's configuration; the UNet's is complete."""
    config = made.config(component)
    return complete(config) if component == "unet" else config


def total_bytes(networks: Iterable[Mapping[str, Tensor]]) -> int:
    """What tensors take on disk."""
    return sum(tensor.nbytes for tensors in networks for tensor in tensors.values())


def _taken(file: TensorFile, names: Mapping[str, str], values: bool) -> dict[str, Tensor]:
    """Tensors of a file, each under the name that its own stands for; numbers of positions are no weights."""
    names = {name: own for name, own in names.items() if not name.endswith("position_ids")}
    if values:
        return {name: file.weight(own) for name, own in names.items()}
    return {name: torch.empty(file.shapes[own], dtype=file.dtype(own), device="meta") for name, own in names.items()}
