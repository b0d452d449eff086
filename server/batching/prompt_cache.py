"""Encoded prompts, kept for the next request that brings the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from cachetools import LRUCache

from engine.condition import Condition
from engine.model import Model
from engine.prompt_syntax import PLAIN, PromptSyntax

KEPT_BYTES = 64 * 2**20  # of encoded prompts: in 16 bit some 560 of Stable Diffusion v1.5, 27 of PixArt-Σ, 16 of FLUX


def _bytes(condition: Condition) -> int:
    return sum(tensor.nbytes for tensor in condition.tensors)


class Wording(NamedTuple):
    """A prompt, and how it is to be read: in a context of so many chunks, with a syntax, by text encoders with these LoRAs."""

    text: str
    chunks: int = 1
    syntax: PromptSyntax = PLAIN
    adapters: str = ""


class PromptCache:
    """Conditions by prompt, one row each. Many requests bring the same prompt, and nearly all the same negative one."""

    def __init__(self, encode: Callable[[Model, Sequence[str], int, PromptSyntax], Condition]) -> None:
        """`encode`: by a model, of texts, chunks and syntax."""
        self._encode = encode
        self._conditions = LRUCache[Wording, Condition](KEPT_BYTES, getsizeof=_bytes)

    def of(self, prompts: Sequence[Wording], models: Mapping[str, Model]) -> dict[Wording, Condition]:
        """Encodes those that are not kept, those that are read alike in one batch; models: by their `adapters`.

        Raises what the encoder raises, and keeps nothing then.
        """
        distinct = list(dict.fromkeys(prompts))
        conditions = {prompt: self._conditions[prompt] for prompt in distinct if prompt in self._conditions}
        alike = defaultdict[tuple[int, PromptSyntax, str], list[Wording]](list)
        for prompt in distinct:
            if prompt not in conditions:
                alike[prompt.chunks, prompt.syntax, prompt.adapters].append(prompt)
        for (chunks, syntax, adapters), missing in alike.items():
            encoded = self._encode(models[adapters], [prompt.text for prompt in missing], chunks, syntax)
            rows = (encoded[i : i + 1].map(torch.clone) for i in range(len(missing)))  # not the whole batch's memory for each
            conditions |= dict(zip(missing, rows, strict=True))
        for prompt, condition in conditions.items():
            if _bytes(condition) <= KEPT_BYTES:
                self._conditions[prompt] = condition
        return conditions

    def forget(self, prompt: Wording) -> None:
        """Encode it anew the next time: what is kept of it made an image that is not finite."""
        self._conditions.pop(prompt, None)
