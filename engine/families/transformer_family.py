"""What is said of a transformer the same way whichever family it is of. A family's own file says the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from typing_extensions import override

from engine.config import defaults, is_whole
from engine.families.family import ClassNames, Family
from engine.folder import Folder
from registry.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.condition import Condition
    from engine.denoiser import Denoiser
    from engine.families.transformer import Parts
    from engine.items import MakeRegion
    from engine.macs import Macs
    from engine.prompts import Prompts
    from registry.schedule import Branch


@dataclass(frozen=True)
class TransformerFamily(Family):
    """A family whose networks come apart into blocks in one order.

    classes: of which the first is what diffusers builds. reads_texts: whether text encoders stand beside it, which must fit.
    """

    component: str = "transformer"
    classes: tuple[str, ...] = ()
    reads_texts: ClassVar[bool] = True

    def written(self, files: Folder) -> dict[str, Any]:
        """The configuration as it is written, when this version knows every component's class. Raises `Unsupported`."""
        raise NotImplementedError

    def parts(self, module: nn.Module, region: MakeRegion) -> Parts:
        """diffusers' module taken apart; `region` compiles parts of it."""
        raise NotImplementedError

    @override
    def refuse(self, files: Folder) -> None:
        self.written(files)

    @override
    def fitting(self, files: Folder) -> dict[str, Any]:
        from engine.components import refuse_latents, refuse_texts

        config = self.known(self.written(files))
        refuse_latents(files, self.component, self.channels(config))
        if self.reads_texts:
            refuse_texts(files, config)
        return config

    @override
    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_channels"])

    @override
    def usual_guidance(self, config: Mapping[str, Any]) -> float | None:
        return None

    @override
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        import diffusers

        module: nn.Module = getattr(diffusers, self.classes[0]).from_config(dict(config))
        return module

    @override
    def unrolled(self, module: nn.Module, region: MakeRegion | None = None) -> Denoiser:
        from engine.families.transformer import UnrolledTransformer
        from engine.items import as_it_is

        return UnrolledTransformer(module, self.parts(module, region or as_it_is))

    @override
    def prompts(self, config: Mapping[str, Any], device: torch.device, names: ClassNames) -> Prompts | None:
        return None

    @override
    def count(
        self, network: Denoiser, latent_shape: tuple[int, int, int], condition: Condition
    ) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
        from engine.families.transformer import UnrolledTransformer, count

        return count(cast(UnrolledTransformer, network), latent_shape, condition)


def completed(config: Mapping[str, Any], class_name: str, numbers: Sequence[str]) -> dict[str, Any]:
    """A configuration with its class and diffusers' defaults; settings that the class does not have are left out.

    Raises `Unsupported` naming one of `numbers` that is no whole number of at least 1.
    """
    own = defaults(class_name)
    made = {**own, **{name: value for name, value in config.items() if name in own}, "_class_name": class_name}
    made["out_channels"] = made["in_channels"] if made["out_channels"] is None else made["out_channels"]
    for field in numbers:
        refuse_number(field, made[field])
    return made


def refuse_number(field: str, value: object) -> None:
    """Raises `Unsupported` unless it is a whole number of at least 1."""
    if not is_whole(value):
        raise Unsupported(f"must be a whole number of at least 1 in the transformer config, got {value!r}", param=field)
