"""Prompts to conditions: how each family of models understands what it shall draw.

A prompt is a text for text-to-image models, a class number or name for class-conditional ones, and empty for
unconditional ones. The negative prompt of classifier-free guidance goes the same way through `negative`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from engine.condition import Condition
from engine.device import to_device
from registry.errors import InvalidInput


class Prompts(Protocol):
    """How a model understands prompts."""

    @property
    def sample(self) -> str:
        """A prompt that every model of the kind understands: what warm-ups and checks draw."""

    @property
    def tokens(self) -> int:
        """Length of the context, 0 without one."""

    @property
    def guides(self) -> bool:
        """Whether classifier-free guidance is possible: whether there is something to guide away from."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of these prompts, one UNet row each. Raises `InvalidInput` for one this family does not understand."""

    def negative(self, prompts: Sequence[str]) -> Condition:
        """The condition of these negative prompts, one UNet row each; an empty one is the model's own notion of nothing.

        Raises `InvalidInput` for a model without classifier-free guidance.
        """

    def cut(self, prompt: str) -> str:
        """The end of a prompt that lies past the context and is never read, as it was written; empty where all is read.

        Safe to ask from any thread.
        """
        return ""


@dataclass(frozen=True)
class TextPrompts(Prompts):
    """A tokenizer and a CLIP text encoder, as in Stable Diffusion 1 and 2."""

    tokenizer: Any
    encoder: Any
    sample: str = ""
    guides: bool = True

    @property
    @override
    def tokens(self) -> int:
        return int(self.tokenizer.model_max_length)  # every prompt is padded or cut to it, as diffusers does

    @override
    def encode(self, prompts: Sequence[str]) -> Condition:
        last_hidden_state = self._run(prompts)[0]
        return Condition(context=last_hidden_state.to(self.encoder.dtype))

    @override
    def negative(self, prompts: Sequence[str]) -> Condition:
        return self.encode(prompts)  # an empty one is encoded as well

    @override
    def cut(self, prompt: str) -> str:
        tokens = self._uncut.encode(prompt)
        if len(tokens.ids) <= self.tokens:
            return ""
        first, _ = tokens.offsets[self.tokens - 1]  # in whose place the end token is read
        return prompt[first:]

    @cached_property
    def _uncut(self) -> Any:
        """A copy that neither cuts nor pads: the encoder's tokenizer is switched to do so, in the thread that encodes."""
        tokenizer = deepcopy(self.tokenizer.backend_tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def penultimate(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last but one hidden state (n, tokens, dim), and the first output: the pooled projection, if it has one."""
        output = self._run(prompts, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    @torch.inference_mode()
    def _run(self, prompts: Sequence[str], **options: Any) -> Any:
        """The text encoder's output object."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        return self.encoder(to_device(tokens.input_ids, self.encoder.device), **options)


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

    @override
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Both encoders' hidden states side by side, the second one's pooled projection, and the sizes."""
        hidden, _ = self.first.penultimate(prompts)
        wider, pooled = self.second.penultimate(prompts)
        sizes = torch.empty(len(prompts), 6, dtype=pooled.dtype, device=pooled.device)
        return Condition(torch.cat([hidden, wider], dim=-1), pooled, sizes).at(*self.size)

    @override
    def negative(self, prompts: Sequence[str]) -> Condition:
        encoded = self.encode(prompts)
        if not self.zeros or encoded.context is None or encoded.pooled is None:
            return encoded
        written = to_device(torch.tensor([bool(prompt) for prompt in prompts]), encoded.pooled.device).view(-1, 1)
        return Condition(encoded.context * written[..., None], encoded.pooled * written, encoded.sizes)

    @override
    def cut(self, prompt: str) -> str:
        """What at least one of the two encoders does not read."""
        return max(self.first.cut(prompt), self.second.cut(prompt), key=len)


@dataclass(frozen=True)
class ClassPrompts(Prompts):
    """Class numbers: each an embedding from a table as a one-token context (LDM-4-G), or a label that the UNet embeds itself.

    table (classes, dim), None for labels. `null` is the class that means none, which guidance guides away from. `names` maps
    words to class numbers.
    """

    count: int
    device: torch.device
    table: Tensor | None = None
    null: int | None = None
    names: Mapping[str, int] = field(default_factory=dict)
    sample: str = "0"

    @property
    @override
    def tokens(self) -> int:
        return 0 if self.table is None else 1  # a class is one token, where it is a token at all

    @property
    @override
    def guides(self) -> bool:
        return self.null is not None

    @override
    def encode(self, prompts: Sequence[str]) -> Condition:
        """A prompt is a class number or one of `names`."""
        labels = to_device(torch.tensor([self._number(prompt) for prompt in prompts]), self.device)
        return Condition(labels=labels) if self.table is None else Condition(context=self.table[labels][:, None])

    @override
    def negative(self, prompts: Sequence[str]) -> Condition:
        if self.null is None:
            raise InvalidInput("this model has no class that means none, so guidance must be 1", param="guidance")
        return self.encode([prompt or str(self.null) for prompt in prompts])

    def _number(self, prompt: str) -> int:
        """The class number that a prompt says or names. Raises `InvalidInput`."""
        number = self.names.get(prompt, prompt)
        try:
            label = int(number)
        except ValueError:
            label = -1
        if not 0 <= label < self.count:
            known = " or one of its names" if self.names else ""
            message = f"this model draws classes, so say a number from 0 to {self.count - 1}{known}; got {prompt!r}"
            raise InvalidInput(message, param="prompt")
        return label


@dataclass(frozen=True)
class NoPrompts(Prompts):
    """An unconditional model, which draws what it likes."""

    sample: str = ""
    tokens: int = 0
    guides: bool = False

    @override
    def encode(self, prompts: Sequence[str]) -> Condition:
        """An empty condition. A prompt that says something is an error: it would be ignored."""
        for prompt in prompts:
            if prompt:
                raise InvalidInput(f"this model is unconditional, so the prompt must be empty, got {prompt!r}", param="prompt")
        return Condition()

    @override
    def negative(self, prompts: Sequence[str]) -> Condition:
        raise InvalidInput("this model is unconditional, so guidance must be 1", param="guidance")

    @override
    def cut(self, prompt: str) -> str:
        """All of it: whoever has to send a prompt may leave out what this says."""
        return prompt
