"""The LoRAs that requests of one model may name: files of the operator's folder that fit its networks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.adapters import LoraReader, adapted
from engine.device import exclusive
from engine.importing.lora import Lora
from engine.importing.lora_names import Layer
from engine.model import Model
from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, Unsupported
from server.loras.adapter_set import AdapterSet, LoraUse
from server.request_fields import LORA_NAME, LoraWish

SHOWN = 20  # names in a refusal


@dataclass(frozen=True)
class OfferedLora:
    """A file that fits. digest: SHA-256 of it at the start, which no other content ever stands for. layers: that it changes."""

    name: str
    path: Path
    digest: str
    layers: frozenset[Layer]

    @property
    def reads(self) -> bool:
        """Whether it changes a text encoder."""
        return any(layer.component != "unet" for layer in self.layers)

    @property
    def counts(self) -> dict[str, int]:
        """How many layers of each network it changes."""
        return dict(Counter(sorted(layer.component for layer in self.layers)))


class OfferedLoras:
    """One model's. Any thread may call."""

    def __init__(self, reader: LoraReader, offered: Iterable[OfferedLora], number_bytes: int, most: int) -> None:
        """number_bytes: of a weight of the model. most: bytes that other weights than the model's own may take."""
        self.loras: Mapping[str, OfferedLora] = {lora.name: lora for lora in offered}
        self._reader, self._number_bytes, self._most = reader, number_bytes, most

    def chosen(self, wishes: Sequence[LoraWish]) -> AdapterSet:
        """What a request asks for. Raises `InvalidInput` and `NotFound` naming the field, and the names that there are."""
        if wishes and not self.loras:
            raise InvalidInput(
                "this model has none: leave it out; FLEXI_LORAS of its server says which there are", param="loras"
            )
        uses = dict[str, LoraUse]()
        for i, wish in enumerate(wishes):
            lora = self.loras.get(wish.name)
            if lora is None:
                raise NotFound(f"this model has {self._names()}", param=f"loras.{i}.name")
            if lora.name in uses:
                raise InvalidInput("named before: say its scale once", param=f"loras.{i}.name")
            uses[lora.name] = LoraUse(lora.name, lora.digest, wish.scale, lora.reads)
        used = [self.loras[name] for name, use in uses.items() if use.scale]
        taken = self._number_bytes * self._reader.numbers(layer for lora in used for layer in lora.layers)
        if taken > self._most:
            message = f"they change {taken / 2**20:.1f} MiB of weights, and FLEXI_LORAS_MIB allows {self._most / 2**20:.1f}"
            raise InvalidInput(message, param="loras")
        return AdapterSet.of([*uses.values()], taken)

    def adapted(self, model: Model, wanted: AdapterSet) -> Model:
        """The model with these LoRAs. Takes a while: reads files, and computes on the device, while no graph is captured.

        Raises `Conflict` where a file is not what it was at the start, and `Unsupported` where a sum overflows.
        """
        loras = [self._read(use) for use in wanted.uses]
        with exclusive():
            try:
                return adapted(model, loras)
            except FlexiError as error:
                raise Unsupported(self._without_paths(error.text), param="loras") from error

    def _read(self, use: LoraUse) -> Lora:
        """All of a file, and then what it is: nothing may have been read of another one."""
        offered = self.loras[use.name]
        try:
            lora = self._reader.fit(offered.path).read(use.scale)
            same = lora.file.sha256() == use.digest
        except FlexiError as error:
            message = f"{use.name} cannot be read: {self._without_paths(error.text)}"
            raise Conflict(message, param="loras") from error
        if not same:
            message = f"{use.name} is another file than when the server started: its operator must start it anew"
            raise Conflict(message, param="loras")
        return lora

    def _without_paths(self, text: str) -> str:
        """Clients know names, and need not know where the files lie."""
        for lora in self.loras.values():
            text = text.replace(str(lora.path), lora.name)
        return text

    def _names(self) -> str:
        names = list(self.loras)
        more = f" and {len(names) - SHOWN} more, which GET /v1/models lists" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more


def is_lora_name(name: str) -> bool:
    """Whether requests can say it; so no name is a path."""
    return re.fullmatch(LORA_NAME, name) is not None
