"""What weights do to a text's condition, which is compel's to say (github.com/damian0815/compel).

A part that weighs w ≥ 1 has the states of its tokens moved away from those of the empty prompt: z = z∅ + w (z − z∅). One that
weighs less is mixed as well with what the encoder makes of the text while the part is masked out, and has gone at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.prompt_syntax import Part

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # as transformers calls a warning of its tokenizers


class WeightedText:
    """A tokenizer and a CLIP text encoder that weigh parts of a text. For one thread.

    penultimate: the condition is the last but one hidden state, as it is, instead of the last one.
    """

    def __init__(self, tokenizer: Any, encoder: Any, penultimate: bool) -> None:
        compel = provider_module()
        kinds = compel.ReturnedEmbeddingsType
        states = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if penultimate else kinds.LAST_HIDDEN_STATES_NORMALIZED
        self._encoder = encoder
        tokenizer.deprecation_warnings[TOO_LONG] = True  # it is never said: compel splits what the tokenizer warns of
        self._provider = compel.EmbeddingsProvider(
            tokenizer,
            encoder,
            truncate=False,
            returned_embeddings_type=states,
            split_long_text_mode=compel.SplitLongTextMode.WORDS,  # as `engine.prompt_chunks` has it
        )

    @torch.inference_mode()
    def states(self, parts: Sequence[Part]) -> Tensor:
        """(chunks · tokens, dim): as many chunks as the text takes. Waits for the device."""
        texts, weights = [part.text for part in parts], [part.weight for part in parts]
        states: Tensor = self._provider.get_embeddings_for_weighted_prompt_fragments(
            [texts], [weights], device=self._encoder.device
        )
        return states[0]


@cache
def provider_module() -> Any:
    """compel's part that is used here. The first time takes half a second: it imports several of diffusers' pipelines."""
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()  # of image processors of those pipelines, which nobody uses here
    try:
        from compel import embeddings_provider
    finally:
        logging.set_verbosity(said)
    return embeddings_provider
