"""CLIP's tokenizer, which every published Stable Diffusion shares, made of the merges that this project brings.

The merges are the first 48,894 of OpenAI's bpe_simple_vocab_16e6.txt (MIT, see NOTICE): all that CLIP reads of its 262,144. The
vocabulary follows from them: 256 bytes, the same at the end of a word, a word for each merge, and two marks.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from engine.architectures import TOKENS

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(padding: str) -> Any:
    """transformers' CLIPTokenizer of 49,408 words and 77 tokens; prompts are filled up with the word `padding`."""
    from transformers import CLIPTokenizer

    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=TOKENS)


def _letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary: bytes that are printable come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]
