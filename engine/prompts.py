"""Prompts to conditions: how each family of models understands what it shall draw.

A prompt is a text for text-to-image models (`engine.text_prompts`), a class number or name for class-conditional ones, and
empty for unconditional ones. The negative prompt of classifier-free guidance goes the same way through `negative`.

A text may be longer than its encoder reads: then CLIP reads it in chunks (`engine.prompt_chunks`), and it may weigh its words
(`engine.prompt_syntax`); where T5 reads it, neither is done. In a wave all contexts are of one length, so who encodes says how
many chunks there shall be, and those that a text does not fill are the empty text's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from engine.condition import Condition
from engine.device import to_device
from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN, PromptSyntax
from registry.errors import InvalidInput

PromptKind = Literal["text", "class", "none"]
QUOTED = 80  # characters of a prompt that an error repeats at most


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

    @property
    def reads_texts(self) -> bool:
        """Whether a prompt is a text."""
        return False

    @property
    def takes_chunks(self) -> bool:
        """Whether a text may take several chunks, and weigh its words: both are done with CLIP's text encoders alone."""
        return False

    @property
    def classes(self) -> Sequence[str]:
        """What a prompt may be, where the model draws classes: each one's name, or its number where it has none."""
        return ()

    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        """The condition of these prompts, one UNet row each; texts in so many chunks, and what goes beyond is cut.

        Raises `InvalidInput` for a prompt that this family does not understand, and for chunks or a syntax that it has not.
        """

    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        """The condition of these negative prompts, one UNet row each; an empty one is the model's own notion of nothing.

        Raises `InvalidInput` for a model without classifier-free guidance.
        """

    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        """How many chunks, `most` at most, a prompt takes, and its end that lies past them and is never read.

        Safe to ask from any thread. Raises `InvalidInput` for a text that is not of this syntax, and for what names no class
        where the model draws classes; not for an empty prompt, which may be a negative one.
        """
        return Reading()

    def cut(self, prompt: str) -> str:
        """The end of a prompt that a single chunk has no room for."""
        return self.reading(prompt).cut


def prompt_kind(prompts: Prompts) -> PromptKind:
    """What a model reads a prompt as."""
    return "text" if prompts.reads_texts else "class" if prompts.classes else "none"


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

    @property
    @override
    def classes(self) -> Sequence[str]:
        named = {number: name for name, number in self.names.items()}
        return [named.get(number, str(number)) for number in range(self.count) if number != self.null]

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        """A prompt is a class number or one of `names`."""
        labels = to_device(torch.tensor([self._number(prompt) for prompt in prompts]), self.device)
        return Condition(labels=labels) if self.table is None else Condition(context=self.table[labels][:, None])

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        if self.null is None:
            raise InvalidInput("this model has no class that means none, so guidance must be 1", param="guidance")
        return self.encode([prompt or str(self.null) for prompt in prompts])

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        if prompt:
            self._number(prompt)
        return Reading()

    def _number(self, prompt: str) -> int:
        """The class number that a prompt says or names. Raises `InvalidInput`."""
        number = self.names.get(prompt, prompt)
        try:
            label = int(number)
        except ValueError:
            label = -1
        if not 0 <= label < self.count:
            known = " or one of its names" if self.names else ""
            message = f"this model draws classes, so say a number from 0 to {self.count - 1}{known}; got {prompt[:QUOTED]!r}"
            raise InvalidInput(message, param="prompt")
        return label


@dataclass(frozen=True)
class NoPrompts(Prompts):
    """An unconditional model, which draws what it likes."""

    sample: str = ""
    tokens: int = 0
    guides: bool = False

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        """An empty condition. A prompt that says something is an error: it would be ignored."""
        for prompt in prompts:
            if prompt:
                raise InvalidInput(
                    f"this model is unconditional, so the prompt must be empty, got {prompt[:QUOTED]!r}", param="prompt"
                )
        return Condition()

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        raise InvalidInput("this model is unconditional, so guidance must be 1", param="guidance")

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        """All of it is cut: whoever has to send a prompt may leave out what this says."""
        return Reading(cut=prompt)
