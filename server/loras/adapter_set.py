"""The LoRAs of a request as the weights know them: in no order, each by name, content and scale."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple


class LoraUse(NamedTuple):
    """A LoRA at a scale. digest: SHA-256 of its file, 64 hex digits. reads: whether it changes what reads the prompts."""

    name: str
    digest: str
    scale: float
    reads: bool = False

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True)
class AdapterSet:
    """The LoRAs that a model's weights have beside them, by name; without any, the model as it is.

    bytes: what the weights take that are not the model's own.
    """

    uses: tuple[LoraUse, ...] = ()
    bytes: int = field(default=0, compare=False)

    @classmethod
    def of(cls, uses: list[LoraUse], taken: int) -> AdapterSet:
        """Equal for the same LoRAs in any order. One at scale 0 changes nothing and is left out."""
        return cls(tuple(sorted(use for use in uses if use.scale)), taken)

    def __bool__(self) -> bool:
        return bool(self.uses)

    @cached_property
    def key(self) -> str:
        """What these weights are called: "" for the model's own."""
        return _called(self.uses)

    @cached_property
    def key_of_texts(self) -> str:
        """What the weights of the text encoders are called: the same for sets that change none of them."""
        return _called(tuple(use for use in self.uses if use.reads))

    @property
    def parameters(self) -> dict[str, str]:
        """What an image's file says of them: names, scales and digests, as JSON."""
        said = [{"name": use.name, "scale": use.scale, "digest": use.digest} for use in self.uses]
        return {"loras": json.dumps(said)} if said else {}

    def __str__(self) -> str:
        return ", ".join(map(str, self.uses))


BASE = AdapterSet()


def _called(uses: tuple[LoraUse, ...]) -> str:
    return " ".join(f"{use.name}@{use.digest}:{use.scale!r}" for use in uses)
