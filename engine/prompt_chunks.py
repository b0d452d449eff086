"""Texts longer than a text encoder reads: in chunks, each between marks of start and end, one after the other in the context.

That is what web UIs do, and compel without truncation. A chunk takes as many whole words as fit: where a word would be split it
goes to the next chunk, unless it is longer than a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.prompt_syntax import PLAIN, Part, PromptSyntax, parts

WORD_END = "</w>"  # with which CLIP's tokens end that end a word


class Reading(NamedTuple):
    """How a model reads a prompt: in so many chunks, without its end `cut`, as it is written; empty where all is read.

    reader, tokens: who cuts it, and the tokens of a chunk, where several text encoders read it that do not read equally much;
    0 where all of them read as many as `Prompts.tokens` says.
    """

    chunks: int = 1
    cut: str = ""
    reader: str = "the model"
    tokens: int = 0


class Span(NamedTuple):
    """Tokens of one chunk, the marks not counted."""

    begin: int
    end: int


def spans(tokens: Sequence[str], room: int) -> list[Span]:
    """The chunks of these tokens, `room` at most in each; one that is empty where there are no tokens."""
    chunks = [Span(0, 0)] if not tokens else []
    begin = 0
    while begin < len(tokens):
        end = begin + room
        if end < len(tokens):
            words = (place + 1 for place in range(end - 1, begin - 1, -1) if tokens[place].endswith(WORD_END))
            end = next(words, end)
        chunks.append(Span(begin, min(end, len(tokens))))
        begin = end
    return chunks


class Tokens(NamedTuple):
    """Of a text: their ids, what they are called, where each begins in its part's text, and where in the prompt."""

    ids: list[int]
    names: list[str]
    offsets: list[int]
    places: list[int]


class ChunkTokenizer:
    """Makes chunks with one of transformers' CLIP tokenizers. Safe to use from any thread.

    It has a copy that neither cuts nor pads: the tokenizer itself is switched to do so, in the thread that encodes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._uncut = tokenizer, deepcopy(tokenizer.backend_tokenizer)
        self._uncut.no_truncation()
        self._uncut.no_padding()
        self._length = int(tokenizer.model_max_length)
        self._room = self._length - 2  # between the marks

    def reading(self, prompt: str, most: int, syntax: PromptSyntax) -> Reading:
        """As `Prompts.reading` says."""
        tokens = self._tokens(parts(prompt, syntax))
        if most == 1 and syntax == PLAIN:  # as diffusers cuts: in the middle of a word, too
            chunks, unread = 1, tokens.places[self._room :]
        else:
            found = spans(tokens.names, self._room)
            chunks, unread = min(most, len(found)), tokens.places[found[most].begin :] if len(found) > most else []
        return Reading(chunks, prompt[unread[0] :] if unread else "")

    def ids(self, text: Sequence[Part], chunks: int) -> Tensor:
        """(chunks, tokens): of the chunks that are read, and then of empty ones."""
        start, end, pad = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        tokens, rows = self._tokens(text), list[list[int]]()
        for span in [*spans(tokens.names, self._room), *[Span(0, 0)] * chunks][:chunks]:
            marked = [start, *tokens.ids[span.begin : span.end], end]
            rows.append(marked + [pad] * (self._length - len(marked)))
        return torch.tensor(rows)

    def kept(self, text: Sequence[Part], chunks: int) -> list[Part]:
        """The parts as far as they are read. A word longer than a chunk ends where it is cut, in a token of its own."""
        kept, left = list[Part](), spans(self._tokens(text).names, self._room)[:chunks][-1].end
        for part in text:
            offsets = self._tokens([part]).offsets
            end = offsets[left] if len(offsets) > left else len(part.text)
            left -= min(len(offsets), left)
            if part.text[:end].strip():
                kept.append(Part(part.text[:end], part.weight, part.places[:end]))
        return kept or [Part("", 1.0, ())]

    def _tokens(self, text: Sequence[Part]) -> Tokens:
        """Part by part, as they are weighed; without marks."""
        tokens = Tokens([], [], [], [])
        for part in text:
            encoded = self._uncut.encode(part.text, add_special_tokens=False)
            offsets = [first for first, _ in encoded.offsets]
            tokens.ids.extend(encoded.ids)
            tokens.names.extend(encoded.tokens)
            tokens.offsets.extend(offsets)
            tokens.places.extend(part.places[offset] for offset in offsets)
        return tokens
