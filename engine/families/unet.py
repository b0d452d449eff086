"""UNets: Stable Diffusion 1, 2 and XL, latent diffusion, DDPM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from engine.config import CLASSES, complete, refuse_unknown
from engine.families.family import ClassNames, Family
from engine.folder import Folder
from engine.guidance import USUAL_EMBEDDED
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

NAMES: dict[str, FamilyName] = {"UNet2DConditionModel": "unet2d-condition", "UNet2DModel": "unet2d"}


@dataclass(frozen=True)
class UNetFamily(Family):
    """diffusers' two classes of them."""

    component: str = "unet"
    classes: tuple[str, ...] = CLASSES

    @override
    def name(self, config: Mapping[str, Any]) -> FamilyName:
        return NAMES[config["_class_name"]]

    @override
    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        refuse_unknown(config)
        return complete(config)

    @override
    def refuse(self, files: Folder) -> None:
        from engine.components import known_unet

        known_unet(files)

    @override
    def fitting(self, files: Folder) -> dict[str, Any]:
        from engine.components import fitting_unet

        return fitting_unet(files)

    @override
    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["out_channels"])

    @override
    def usual_guidance(self, config: Mapping[str, Any]) -> float | None:
        return None if config.get("time_cond_proj_dim") is None else USUAL_EMBEDDED

    @override
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        import diffusers

        unet: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
        return unet

    @override
    def unrolled(self, module: nn.Module, region: MakeRegion | None = None) -> Denoiser:
        from engine.unrolled import UnrolledUNet

        return UnrolledUNet(cast(Any, module), region)

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        from engine.macs import unet_condition

        return unet_condition(config, tokens, latent_shape)

    @override
    def prompts(self, config: Mapping[str, Any], device: torch.device, names: ClassNames) -> Prompts | None:
        from engine.prompts import ClassPrompts

        classes = config.get("num_class_embeds")
        return None if classes is None else ClassPrompts(int(classes), device, names=names(int(classes)))

    @override
    def count(
        self, network: Denoiser, latent_shape: tuple[int, int, int], condition: Condition
    ) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
        from engine.macs import count_unet
        from engine.unrolled import UnrolledUNet

        return count_unet(cast(UnrolledUNet, network), latent_shape, condition)


UNET = UNetFamily()
