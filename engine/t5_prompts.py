"""Prompts that T5's encoder reads (arXiv 1910.10683): alone, as in PixArt, or beside CLIP's text encoders.

T5 reads one text of a fixed number of tokens. There are no chunks and no weights of words here: a wish for either is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from engine.condition import PIXART_SIZES, Condition
from engine.device import to_device
from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN, PromptSyntax
from engine.prompts import Prompts
from registry.errors import InvalidInput


@dataclass(frozen=True)
class T5Text:
    """A tokenizer and T5's encoder, which reads so many tokens: longer texts are cut, shorter ones padded.

    masked: whether the encoder is told which tokens are padding; else it reads them as well.
    """

    tokenizer: Any
    encoder: Any
    tokens: int
    masked: bool = False

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (n, tokens, dim), and which tokens are no padding (n, tokens), bool."""
        options = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        read = self.tokenizer(list(texts), return_attention_mask=True, **options)
        ids, mask = (to_device(read[name], self.encoder.device) for name in ("input_ids", "attention_mask"))
        states: Tensor = self.encoder(ids, attention_mask=mask if self.masked else None)[0]
        return states.to(self.encoder.dtype), mask.bool()

    def unread(self, text: str) -> int:
        """Where in a text its end begins that is never read; its length, where all is read. Safe to ask from any thread."""
        offsets = [begin for begin, _ in self._uncut.encode(text, add_special_tokens=False).offsets]
        room = self.tokens - 1  # beside the end mark
        return offsets[room] if len(offsets) > room else len(text)

    @cached_property
    def _uncut(self) -> Any:
        """A copy of the tokenizer that neither cuts nor pads: the tokenizer itself is switched to do so by who encodes."""
        copy = deepcopy(self.tokenizer.backend_tokenizer)
        copy.no_truncation()
        copy.no_padding()
        return copy


def refuse_chunks(chunks: int, syntax: PromptSyntax) -> None:
    """Raises `InvalidInput` for what is done with CLIP's text encoders alone."""
    for field, asked in (("prompt_chunks", chunks != 1), ("prompt_syntax", syntax != PLAIN)):
        if asked:
            raise InvalidInput("is of models whose texts CLIP alone reads: T5 reads one chunk, without weights", param=field)


@dataclass(frozen=True)
class T5Prompts(Prompts):
    """T5 alone, as in PixArt (arXiv 2310.00426): the network sees the tokens of the text and none of its padding.

    Texts are lower-cased and stripped, as its pipelines do. What these call cleaning, and do beside where two packages are
    installed (URLs, HTML and numbers out of a text), is not done. `size` (height, width) in pixels is that of the model's own
    images, where the network is told of it (PixArt-α of 1024 pixels), as `Condition.at` gives it.
    """

    text: T5Text
    size: tuple[int, int] | None = None
    sample: str = ""
    guides: bool = True

    @property
    @override
    def tokens(self) -> int:
        return self.text.tokens

    @property
    @override
    def reads_texts(self) -> bool:
        return True

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        refuse_chunks(chunks, syntax)
        states, mask = self.text.states([prompt.lower().strip() for prompt in prompts])
        if self.size is None:
            return Condition(context=states, mask=mask)
        sizes = torch.empty(len(prompts), PIXART_SIZES, dtype=states.dtype, device=states.device)
        return Condition(context=states, mask=mask, sizes=sizes).at(*self.size)

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        return self.encode(prompts, chunks, syntax)  # an empty one is encoded as well

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        refuse_chunks(1, syntax)
        lowered = prompt.lower()
        places = [place for place, letter in enumerate(prompt) for _ in letter.lower()]  # of each letter of the lowered text
        begin = self.text.unread(lowered.strip()) + len(lowered) - len(lowered.lstrip())
        return Reading(cut=prompt[places[begin] :] if begin < len(lowered.rstrip()) else "")
