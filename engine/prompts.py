"""Prompts to conditions: how each family of models is told what to draw.

A prompt is a text for text-to-image models, a class number or name for class-conditional ones, and empty for
unconditional ones. The negative prompt of classifier-free guidance goes the same way through `negative`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.condition import Condition
from engine.device import to_device
from registry.errors import InvalidInput


class Prompts(Protocol):
    """What a model is told to draw."""

    @property
    def sample(self) -> str:
        """A prompt that every model of the kind understands."""

    @property
    def tokens(self) -> int:
        """Length of the context, 0 without one."""

    @property
    def guides(self) -> bool:
        """Whether classifier-free guidance is possible: whether there is something to guide away from."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """One row for each prompt. Raises `InvalidInput` for a prompt this family does not understand."""

    def negative(self, prompts: Sequence[str]) -> Condition:
        """One row for each negative prompt; an empty one is the model's own notion of nothing."""


@dataclass(frozen=True)
class TextPrompts:
    """A tokenizer and a CLIP text encoder, as in Stable Diffusion 1 and 2."""

    tokenizer: Any
    encoder: Any
    sample: str = ""
    guides: bool = True

    @property
    def tokens(self) -> int:
        """The tokenizer's limit: every prompt is padded or cut to it, as diffusers does."""
        return int(self.tokenizer.model_max_length)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The encoder's last hidden state."""
        return Condition(context=self._run(prompts)[0].to(self.encoder.dtype))

    def negative(self, prompts: Sequence[str]) -> Condition:
        """The same as any prompt, the empty one too."""
        return self.encode(prompts)

    def penultimate(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last but one hidden state (n, tokens, dim), and the first output: the pooled projection, if it has one."""
        output = self._run(prompts, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    @torch.inference_mode()
    def _run(self, prompts: Sequence[str], **options: Any) -> Any:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        return self.encoder(to_device(tokens.input_ids, self.encoder.device), **options)


@dataclass(frozen=True)
class TwoTextPrompts:
    """Two CLIP text encoders and the image's size, as in Stable Diffusion XL (arXiv 2307.01952, sections 2.1 and 2.2).

    `size` (height, width) in pixels is given as both the original and the target size, without a crop. With `zeros` an empty
    negative prompt is zeros instead of an encoded empty text (`force_zeros_for_empty_prompt` in diffusers).
    """

    first: TextPrompts
    second: TextPrompts
    size: tuple[int, int]
    zeros: bool
    sample: str = ""
    guides: bool = True

    @property
    def tokens(self) -> int:
        """Both encoders read the same number of tokens."""
        return self.first.tokens

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Both encoders' hidden states side by side, the second one's pooled projection, and the sizes."""
        hidden, _ = self.first.penultimate(prompts)
        wider, pooled = self.second.penultimate(prompts)
        sizes = to_device(torch.tensor([[*self.size, 0, 0, *self.size]], dtype=pooled.dtype), pooled.device)
        return Condition(torch.cat([hidden, wider], dim=-1), pooled, sizes.repeat(len(prompts), 1))

    def negative(self, prompts: Sequence[str]) -> Condition:
        """An empty one is zeros where the model wants that."""
        given = self.encode(prompts)
        if not self.zeros or given.context is None or given.pooled is None:
            return given
        written = to_device(torch.tensor([bool(prompt) for prompt in prompts]), given.pooled.device).view(-1, 1)
        return Condition(given.context * written[..., None], given.pooled * written, given.sizes)


@dataclass(frozen=True)
class ClassPrompts:
    """Class numbers: rows of a table as one-token contexts (LDM-4-G), or labels that the UNet embeds itself (no `table`).

    table (classes, dim). `null` is the class that means none, which guidance guides away from. `names` gives words to numbers.
    """

    count: int
    device: torch.device
    table: Tensor | None = None
    null: int | None = None
    names: Mapping[str, int] = field(default_factory=dict)
    sample: str = "0"

    @property
    def tokens(self) -> int:
        """A class is one token, where it is a token at all."""
        return 0 if self.table is None else 1

    @property
    def guides(self) -> bool:
        """Needs a class that means none."""
        return self.null is not None

    def encode(self, prompts: Sequence[str]) -> Condition:
        """A prompt is a class number or one of `names`."""
        labels = to_device(torch.tensor([self._number(prompt) for prompt in prompts]), self.device)
        return Condition(labels=labels) if self.table is None else Condition(context=self.table[labels][:, None])

    def negative(self, prompts: Sequence[str]) -> Condition:
        """The class that means none for an empty prompt, else the class named."""
        if self.null is None:
            raise InvalidInput("this model has no class that means none, so guidance must be 1", param="guidance")
        return self.encode([prompt or str(self.null) for prompt in prompts])

    def _number(self, prompt: str) -> int:
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
class NoPrompts:
    """An unconditional model, which draws what it likes."""

    sample: str = ""
    tokens: int = 0
    guides: bool = False

    def encode(self, prompts: Sequence[str]) -> Condition:
        """An empty condition. A prompt that says something is an error: it would be ignored."""
        for prompt in prompts:
            if prompt:
                raise InvalidInput(f"this model is unconditional, so the prompt must be empty, got {prompt!r}", param="prompt")
        return Condition()

    def negative(self, prompts: Sequence[str]) -> Condition:
        """There is nothing to guide away from."""
        raise InvalidInput("this model is unconditional, so guidance must be 1", param="guidance")
