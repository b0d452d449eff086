"""What of a prompt a model does not read, held against its tokenizer and against what diffusers says of the same prompt."""

from __future__ import annotations

import logging
import re
from ast import literal_eval
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline
from hypothesis import example, given
from hypothesis import strategies as st
from places import ROOT

from engine.model import Model
from engine.prompts import QUOTED, ClassPrompts, NoPrompts, prompt_kind
from engine.text_prompts import TextPrompts, TwoTextPrompts
from registry.errors import InvalidInput

EMOJI = ROOT / "models" / "emoji64"
LONG = "Red heart on a white plate beside a small green tree under the big yellow sun in the sky today"
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["red", "Heart", "plate,", "ünïcode", "👩\u200d👧", "<|endoftext|>", "12", " ", "\n"]), max_size=30
    ).map(" ".join),
)


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def short() -> TextPrompts:
    """Sixteen tokens; the encoder is of no interest."""
    return TextPrompts(tokenizer(EMOJI / "tokenizer"), None)


@given(TEXTS)
@example(LONG)
@example("")
def test_a_prompt_is_cut_exactly_where_its_tokenizer_cuts_it(short: TextPrompts, prompt: str) -> None:
    whole = short.tokenizer(prompt, verbose=False).input_ids
    read = short.tokenizer(prompt, truncation=True, max_length=short.tokens).input_ids
    cut = short.cut(prompt)
    assert bool(cut) == (whole != read)
    assert prompt.endswith(cut)


@pytest.mark.parametrize(
    "prompt", [LONG, f"{LONG}, a Purple dog", "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n o", ""]
)
def test_what_is_cut_is_what_diffusers_says_it_removed(
    caplog: pytest.LogCaptureFixture, short: TextPrompts, prompt: str
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(EMOJI, safety_checker=None)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    finally:
        logger.removeHandler(caplog.handler)
    said = [match for text in caplog.messages if (match := re.search(r"sequences up to (\d+) tokens: (.*)", text))]
    removed = [literal_eval(match[2])[0] for match in said]
    assert [int(match[1]) for match in said] == [short.tokens] * len(said)
    cut = short.cut(prompt)
    assert len(removed) == bool(cut)
    assert "".join("".join(removed).split()) == "".join(cut.lower().split())


def test_what_a_prompt_may_be_is_told_by_the_model() -> None:
    classes = ClassPrompts(4, torch.device("cpu"), null=3, names={"cat": 0, "dog": 2})
    assert (prompt_kind(classes), classes.classes) == ("class", ["cat", "1", "dog"])
    assert (prompt_kind(NoPrompts()), NoPrompts().classes) == ("none", ())


def test_of_two_encoders_the_one_that_reads_less_decides(short: TextPrompts) -> None:
    other = TextPrompts(tokenizer(EMOJI / "clip"), None)
    other.tokenizer.model_max_length = 7
    pair = TwoTextPrompts(short, other, (64, 64), zeros=True)
    assert short.cut("red heart on a white plate") == ""
    assert pair.cut("red heart on a white plate") == other.cut("red heart on a white plate") != ""
    swapped = TwoTextPrompts(other, short, (64, 64), zeros=True)
    assert swapped.cut(LONG) == pair.cut(LONG) == other.cut(LONG)


def test_looking_for_the_cut_leaves_the_encoders_tokenizer_as_it_was(model: Model) -> None:
    """It is switched to cut and to pad by the thread that encodes: switching it off meanwhile would spoil a batch."""
    assert isinstance(model.prompts, TextPrompts)
    encoding = model.prompts.tokenizer.backend_tokenizer
    model.prompts.encode([LONG])
    before = encoding.truncation, encoding.padding
    assert model.prompts.cut(LONG)
    assert (encoding.truncation, encoding.padding) == before
    assert None not in before


def test_of_a_class_nothing_is_cut_and_an_unconditional_model_reads_nothing() -> None:
    assert ClassPrompts(10, torch.device("cpu")).cut("7") == NoPrompts().cut("") == ""
    assert NoPrompts().cut("red heart") == "red heart"


@given(st.one_of(st.text(max_size=100), st.integers(-2, 6).map(str), st.sampled_from(["cat", "dog"])))
@example("")
def test_of_classes_exactly_those_prompts_are_read_that_can_be_encoded(prompt: str) -> None:
    classes = ClassPrompts(4, torch.device("cpu"), null=3, names={"cat": 0, "dog": 2})
    try:
        classes.negative([prompt])
    except InvalidInput:
        with pytest.raises(InvalidInput, match=r"^prompt: this model draws classes, so say a number from 0 to 3 or one of"):
            classes.reading(prompt)
    else:
        assert classes.reading(prompt).chunks == 1


def test_what_names_no_class_is_shown_in_part() -> None:
    for prompt in ("x" * 4000, "7" * 4000):
        with pytest.raises(InvalidInput) as refused:
            ClassPrompts(10, torch.device("cpu")).reading(prompt)
        assert refused.value.text.endswith(f"got {prompt[:QUOTED]!r}")
