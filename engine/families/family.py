"""What the engine asks of a family of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from engine.folder import Folder
from registry.schedule import Family as FamilyName

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.condition import Condition
    from engine.denoiser import Denoiser
    from engine.items import MakeRegion
    from engine.macs import Macs
    from engine.prompts import Prompts
    from registry.schedule import Branch

ClassNames: TypeAlias = Callable[[int], dict[str, int]]


class Family(Protocol):
    """One file of this room. It may be imported without torch: whether a folder could run is asked before torch is there."""

    @property
    def component(self) -> str:
        """What pipelines call the network, and so the folder that it lies in."""

    @property
    def classes(self) -> Sequence[str]:
        """The diffusers classes that a folder may name, old names included."""

    def name(self, config: Mapping[str, Any]) -> FamilyName:
        """What schedules call it."""

    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with its class and diffusers' defaults.

        Raises `Unsupported` naming the setting that this version does not run.
        """

    def refuse(self, files: Folder) -> None:
        """What `fitting` raises, as far as it can be seen without torch and diffusers."""

    def fitting(self, files: Folder) -> dict[str, Any]:
        """The complete configuration of a folder's network, when the other components fit it. Raises `Unsupported`."""

    def channels(self, config: Mapping[str, Any]) -> int:
        """Those of its latents."""

    def usual_guidance(self, config: Mapping[str, Any]) -> float | None:
        """The guidance scale where nobody says one, of a network that takes the scale as an input; None of all others."""

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """diffusers' module of a complete configuration, on torch's current device. Raises what diffusers raises."""

    def unrolled(self, module: nn.Module, region: MakeRegion | None = None) -> Denoiser:
        """The same module, able to run in part; `region` compiles parts of it."""

    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        """A condition of one row of the kind that it takes, on torch's current device, of any numbers."""

    def prompts(self, config: Mapping[str, Any], device: torch.device, names: ClassNames) -> Prompts | None:
        """How it understands prompts, where that follows from its configuration; None where another component says it.

        names: of so many classes, what the folder calls them: word to number.
        """

    def count(
        self, network: Denoiser, latent_shape: tuple[int, int, int], condition: Condition
    ) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
        """On the device meta: what one row of a full step takes, of a partial one of each branch, and the shape of its feature
        without rows."""
