"""Prompts that are texts, and the text encoders that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from engine.condition import Condition
from engine.device import to_device
from engine.prompt_chunks import ChunkTokenizer, Reading
from engine.prompt_syntax import PLAIN, PromptSyntax, parts
from engine.prompts import Prompts
from engine.weighted_text import WeightedText


@dataclass(frozen=True)
class TextPrompts(Prompts):
    """A tokenizer and a CLIP text encoder, as in Stable Diffusion 1 and 2.

    penultimate: the context is the last but one hidden state, as in Stable Diffusion XL, instead of the last one.
    """

    tokenizer: Any
    encoder: Any
    sample: str = ""
    guides: bool = True
    penultimate: bool = False

    @property
    @override
    def tokens(self) -> int:
        return int(self.tokenizer.model_max_length)  # every chunk is padded or cut to it, as diffusers does with a prompt

    @property
    @override
    def reads_texts(self) -> bool:
        return True

    @property
    @override
    def takes_chunks(self) -> bool:
        return True

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        states, _ = self.states(prompts, chunks, syntax)
        return Condition(context=states)

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        return self.encode(prompts, chunks, syntax)  # an empty one is encoded as well

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        return self._chunked.reading(prompt, most, syntax)

    @torch.inference_mode()
    def states(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> tuple[Tensor, Tensor]:
        """Hidden states (n, chunks · tokens, dim), and the first output of the first chunk: the pooled projection, if any.

        The pooled projection is that of the text without its weights.
        """
        if chunks == 1 and syntax == PLAIN:
            return self._run(self._ids(prompts))
        texts = [parts(prompt, syntax) for prompt in prompts]
        states, first = self._run(torch.cat([self._chunked.ids(text, chunks) for text in texts]))
        states = states.unflatten(0, (-1, chunks)).flatten(1, 2)
        first = first[::chunks].clone(memory_format=torch.contiguous_format)  # compiled regions know tensors by their strides
        for row, text in zip(states, texts, strict=True):
            if any(part.weight != 1 for part in text):
                weighted = self._weights.states(self._chunked.kept(text, chunks))[: len(row)]
                row[: len(weighted)] = weighted
        return states, first

    @torch.inference_mode()
    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """The state of each text's end mark (n, dim), not projected: `pooler_output` in transformers."""
        pooled: Tensor = self.encoder(to_device(self._ids(prompts), self.encoder.device)).pooler_output
        return pooled.to(self.encoder.dtype)

    def _ids(self, prompts: Sequence[str]) -> Tensor:
        """(n, tokens): cut as diffusers cuts, and padded."""
        options = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(list(prompts), **options).input_ids
        return ids

    def _run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and the first output of these ids (n, tokens)."""
        output = self.encoder(to_device(ids, self.encoder.device), output_hidden_states=self.penultimate)
        states = output.hidden_states[-2] if self.penultimate else output[0]
        return states.to(self.encoder.dtype), output[0]

    @cached_property
    def _chunked(self) -> ChunkTokenizer:
        return ChunkTokenizer(self.tokenizer)

    @cached_property
    def _weights(self) -> WeightedText:
        return WeightedText(self.tokenizer, self.encoder, self.penultimate)


@dataclass(frozen=True)
class TwoTextPrompts(Prompts):
    """Two CLIP text encoders and the image's size, as in Stable Diffusion XL (arXiv 2307.01952, sections 2.1 and 2.2).

    `size` (height, width) in pixels is that of the model's own images, as `Condition.at` gives it. With `zeros` an empty
    negative prompt is zeros instead of an encoded empty text (`force_zeros_for_empty_prompt` in diffusers).
    """

    first: TextPrompts
    second: TextPrompts
    size: tuple[int, int]
    zeros: bool
    sample: str = ""
    guides: bool = True

    @property
    @override
    def tokens(self) -> int:
        return self.first.tokens  # the second encoder reads as many

    @property
    @override
    def reads_texts(self) -> bool:
        return True

    @property
    @override
    def takes_chunks(self) -> bool:
        return True

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        """Both encoders' hidden states side by side, the second one's pooled projection of the first chunk, and the sizes."""
        hidden, _ = self.first.states(prompts, chunks, syntax)
        wider, pooled = self.second.states(prompts, chunks, syntax)
        sizes = torch.empty(len(prompts), 6, dtype=pooled.dtype, device=pooled.device)
        return Condition(torch.cat([hidden, wider], dim=-1), pooled, sizes).at(*self.size)

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        encoded = self.encode(prompts, chunks, syntax)
        if not self.zeros or encoded.context is None or encoded.pooled is None:
            return encoded
        written = to_device(torch.tensor([bool(prompt) for prompt in prompts]), encoded.pooled.device).view(-1, 1)
        return Condition(encoded.context * written[..., None], encoded.pooled * written, encoded.sizes)

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        """As many chunks as either encoder takes, and what at least one of the two does not read."""
        both = [text.reading(prompt, most, syntax) for text in (self.first, self.second)]
        return Reading(max(one.chunks for one in both), max((one.cut for one in both), key=len))
