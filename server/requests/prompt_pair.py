"""How a request's two prompts are read: with which syntax, in how many chunks, and what of them is not read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from engine.notice import Notice
from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN, SYNTAXES, PromptSyntax
from engine.prompts import Prompts
from engine.weighted_text import provider_module
from registry.errors import InvalidInput
from server.api import GenerateRequest
from server.requests import warnings

READINGS_KEPT = 256  # texts whose reading is known
LONG = 500  # characters: reading more for its tokens would keep the event loop for milliseconds


@dataclass(frozen=True)
class PromptPair:
    """The prompts of a request as they are read. prompt: empty where the model reads none, which it had to be told.

    fault: what is wrong with the negative prompt, if anything is.
    """

    syntax: PromptSyntax
    prompt: str
    negative: str
    readings: tuple[Reading, Reading]
    most: int
    fault: str = ""

    def chunks(self, rows: int) -> int:
        """Of the context of an image of so many UNet rows: an unguided one does not see the negative prompt."""
        return max(reading.chunks for reading in self.readings[:rows])

    def cut(self, rows: int, tokens: int) -> list[Notice]:
        """What is not read of the texts that are to be read. tokens: of a chunk.

        Raises `InvalidInput` for a negative prompt that is to be read and cannot be.
        """
        if self.fault and rows > 1:
            raise InvalidInput(self.fault, param="negative_prompt")
        fields = zip(("prompt", "negative_prompt")[:rows], self.readings, strict=False)
        return [
            warnings.prompt_cut(field, read.cut, read.tokens or tokens, self.most, read.reader)
            for field, read in fields
            if read.cut
        ]


class PromptReader:
    """Reads prompts for one model, and remembers. most: chunks of one; syntaxes: those that there are, the default first."""

    def __init__(self, prompts: Prompts, most: int = 1, syntax: PromptSyntax = PLAIN) -> None:
        self.most = most
        self.syntaxes: Sequence[PromptSyntax] = [*dict.fromkeys((syntax, *SYNTAXES))] if prompts.takes_chunks else [PLAIN]
        self._prompts = prompts
        self._readings = LRUCache[tuple[str, PromptSyntax], Reading](READINGS_KEPT)
        self._prompts.reading(self._prompts.sample)  # the first time takes longest: no request waits for it

    async def read(self, request: GenerateRequest) -> PromptPair:
        """Raises `InvalidInput` naming the field for a prompt that the model cannot read, or a syntax that there is not.

        A fault of the negative prompt is noted: whether an image reads it depends on the guidance, which is not known yet.
        """
        syntax = request.prompt_syntax or self.syntaxes[0]
        if syntax not in self.syntaxes:
            why = "T5 reads this model's texts, and weights are for CLIP's alone"
            why = why if self._prompts.reads_texts else "the prompts of this model are no texts"
            raise InvalidInput(f"{why}: leave it out, or say plain", param="prompt_syntax")
        if syntax != PLAIN:
            await asyncio.to_thread(provider_module)  # its first import takes a while: the engine's thread finds it done
        prompt, negative = request.prompt, request.negative_prompt
        reading = await self._reading("prompt", prompt, syntax)
        if reading.cut == prompt:
            prompt, reading = "", await self._reading("prompt", "", syntax)
        away, fault = Reading(), ""
        try:
            away = await self._reading("negative_prompt", negative, syntax)
        except InvalidInput as error:
            fault = error.text
        return PromptPair(syntax, prompt, negative, (reading, away), self.most, fault)

    async def _reading(self, field: str, text: str, syntax: PromptSyntax) -> Reading:
        if (text, syntax) not in self._readings:
            try:
                if len(text) <= LONG:
                    reading = self._prompts.reading(text, self.most, syntax)
                else:
                    reading = await asyncio.to_thread(self._prompts.reading, text, self.most, syntax)
            except InvalidInput as error:
                raise InvalidInput(error.text, param=field) from error
            self._readings[text, syntax] = reading
        return self._readings[text, syntax]
