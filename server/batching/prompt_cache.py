"""Encoded prompts, kept for the next request that brings the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cachetools import LRUCache

from engine.condition import Condition

KEPT = 64  # encoded prompts; 64 of Stable Diffusion v1.5 take 15 MB


class PromptCache:
    """Conditions by prompt, one row each. Many requests bring the same prompt, and nearly all the same negative one."""

    def __init__(self, encode: Callable[[Sequence[str]], Condition]) -> None:
        self._encode = encode
        self._conditions = LRUCache[str, Condition](KEPT)

    def of(self, prompts: Sequence[str]) -> dict[str, Condition]:
        """Encodes those that are not kept, in one batch. Raises what the encoder raises, and keeps nothing then."""
        distinct = list(dict.fromkeys(prompts))
        conditions = {prompt: self._conditions[prompt] for prompt in distinct if prompt in self._conditions}
        if missing := [prompt for prompt in distinct if prompt not in conditions]:
            encoded = self._encode(missing)
            conditions |= {prompt: encoded[i : i + 1] for i, prompt in enumerate(missing)}
        self._conditions.update(conditions)
        return conditions

    def forget(self, prompt: str) -> None:
        """Encode it anew the next time: what is kept of it made an image that is not finite."""
        self._conditions.pop(prompt, None)
