"""Prompts that CLIP's text encoders and T5's read side by side, as those of Stable Diffusion 3 and FLUX.

Neither is told what is padding, so that padding is part of what a text means: every text is padded to the length that the
network was trained with. CLIP reads less of a text than T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from typing_extensions import override

from engine.condition import Condition
from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN, PromptSyntax
from engine.prompts import Prompts
from engine.t5_prompts import T5Text, refuse_chunks
from engine.text_prompts import TextPrompts
from registry.errors import InvalidInput


class MixedPrompts(Prompts):
    """What the kinds of them share."""

    sample: str = ""
    guides: bool = True

    @property
    @override
    def reads_texts(self) -> bool:
        return True

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        return self.encode(prompts, chunks, syntax)  # an empty one is encoded as well


@dataclass(frozen=True)
class SD3Prompts(MixedPrompts):
    """Two CLIP text encoders with projections and T5, as in Stable Diffusion 3 (arXiv 2403.03206, section 4).

    The context is CLIP's last but one hidden states side by side, filled up with zeros to `width`, and behind them T5's, or as
    many zeros where the folder has no T5. The pooled text is both projections side by side.
    """

    first: TextPrompts
    second: TextPrompts
    t5: T5Text | None
    t5_tokens: int
    width: int

    @property
    @override
    def tokens(self) -> int:
        return self.first.tokens + self.t5_tokens

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        refuse_chunks(chunks, syntax)
        (hidden, pooled), (wider, more) = (text.states(prompts) for text in (self.first, self.second))
        clip = torch.cat([hidden, wider], dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        if self.t5 is None:
            context = F.pad(clip, (0, 0, 0, self.t5_tokens))
        else:
            context = torch.cat([clip, self.t5.states(prompts)[0]], dim=1)
        return Condition(context, torch.cat([pooled, more], dim=-1))

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        refuse_chunks(1, syntax)
        both = (self.first.reading(prompt, 1, syntax).cut, self.second.reading(prompt, 1, syntax).cut)
        if self.t5 is None:
            return Reading(cut=max(both, key=len), tokens=self.first.tokens)
        return _reading(prompt, self.t5, max(both, key=len), self.first.tokens, syntax)


@dataclass(frozen=True)
class FluxPrompts(MixedPrompts):
    """T5, and of a CLIP text encoder the state of the end mark alone, as in FLUX.1.

    guides: whether the network takes a guidance scale as an input; guidance away from a second prompt is not offered.
    """

    clip: TextPrompts
    t5: T5Text
    guides: bool = True

    @property
    @override
    def tokens(self) -> int:
        return self.t5.tokens

    @override
    def encode(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        refuse_chunks(chunks, syntax)
        return Condition(self.t5.states(prompts)[0], self.clip.pooled(prompts))

    @override
    def negative(self, prompts: Sequence[str], chunks: int = 1, syntax: PromptSyntax = PLAIN) -> Condition:
        if not self.guides:
            raise InvalidInput("this model takes no guidance scale, so guidance must be 1", param="guidance")
        return super().negative(prompts, chunks, syntax)

    @override
    def reading(self, prompt: str, most: int = 1, syntax: PromptSyntax = PLAIN) -> Reading:
        return _reading(prompt, self.t5, self.clip.cut(prompt), self.clip.tokens, syntax)


def _reading(prompt: str, t5: T5Text, unread_by_clip: str, clip_tokens: int, syntax: PromptSyntax) -> Reading:
    """What nobody reads of a prompt; else what CLIP does not."""
    refuse_chunks(1, syntax)
    if unread := prompt[t5.unread(prompt) :]:
        return Reading(cut=unread, reader="T5", tokens=t5.tokens)
    return Reading(cut=unread_by_clip, reader="CLIP, unlike T5,", tokens=clip_tokens)
