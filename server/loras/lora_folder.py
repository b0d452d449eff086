"""The operator's folder of LoRAs, `NAME.safetensors` each, looked through at the start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from engine.adapters import LoraReader
from engine.config import reason
from engine.importing.tensor_file import PICKLES
from engine.model import Model
from registry.errors import FlexiError, Unsupported
from registry.foreign_errors import printable
from server.loras.offered_loras import OfferedLora, OfferedLoras, is_lora_name

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"


class LoraFolder:
    """Files, each read once to know its content again, whichever models it fits. Methods block."""

    def __init__(self, folder: Path | None, most: int, alone: bool = True) -> None:
        """most: bytes of weights that LoRAs change, of one model. alone: there is one model, which every file should fit."""
        self._folder, self._most = folder, most
        self._level = logging.WARNING if alone else logging.INFO
        self._digests = dict[Path, str]()

    def offered(self, folder: Path, model: Model) -> OfferedLoras | None:
        """None where there is no folder; else those that fit the model's networks, by headers: no weights are needed.

        What cannot be offered is logged with the reason. Raises what is wrong with the model's folder.
        """
        if self._folder is None:
            return None
        reader = LoraReader(folder)
        found = OfferedLoras(reader, self._fitting(self._folder, reader, model), model.dtype.itemsize, self._most)
        fields = {"model": model.ref.name, "loras": sorted(found.loras), "mib": self._most >> 20}
        log.info("LoRAs are offered", extra={"fields": fields})
        return found

    def _fitting(self, folder: Path, reader: LoraReader, model: Model) -> Iterator[OfferedLora]:
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            log.error("no LoRA is offered: %s", reason(error))
            return
        for path in paths:
            if path.suffix not in (SUFFIX, *PICKLES):
                continue
            try:
                yield self._offered(path, reader)
            except Exception as error:  # whatever somebody put there, the server starts
                said = error.text if isinstance(error, FlexiError) else reason(error)
                log.log(self._level, "the LoRA %s is not offered with %s: %s", printable(path.name), model.ref.name, said)

    def _offered(self, path: Path, reader: LoraReader) -> OfferedLora:
        if path.suffix != SUFFIX:
            raise Unsupported("a pickle may run anything when it is read: only safetensors files are offered", param="loras")
        if not is_lora_name(path.stem):
            raise Unsupported("its name must be 1 to 64 letters, digits, '.', '_' and '-' before .safetensors", param="loras")
        fitting = reader.fit(path)
        if fitting.settings_beside:
            message = (
                "its α is in a file adapter_config.json, of which a folder has one: convert it to diffusers' or kohya's form"
            )
            raise Unsupported(message, param="loras")
        if path not in self._digests:
            self._digests[path] = fitting.file.sha256()
        return OfferedLora(path.stem, path, self._digests[path], frozenset(fitting.parts))
