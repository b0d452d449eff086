"""Weights of words as web UIs write them; errors say where in the prompt they are."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompt_syntax import MAX_LOWERED, MAX_WEIGHT, PLAIN, STEP, parts
from registry.errors import InvalidInput


def weights(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, pytest.approx(part.weight)) for part in parts(prompt, "webui")]


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("red heart", [("red heart", 1)]),
        ("", [("", 1)]),
        ("( )", [("", 1)]),
        ("(red) heart", [("red", STEP), (" heart", 1)]),
        ("((red)) heart", [("red", STEP**2), (" heart", 1)]),
        ("[red] heart", [("red", 1 / STEP), (" heart", 1)]),
        ("a (red:1.3) heart", [("a ", 1), ("red", 1.3), (" heart", 1)]),
        ("(red : 0.25 )", [("red ", 0.25)]),
        ("(big (red:1.5) heart:0.5)", [("big ", 0.5), ("red", 0.75), (" heart", 0.5)]),
        (r"\(red\) \[heart\] \\ a\b", [(r"(red) [heart] \ a\b", 1)]),
        ("a:b | c", [("a:b | c", 1)]),
        (r"[a\|b\:c] d\|e", [("a|b:c", 1 / STEP), (" d|e", 1)]),
        (r"(a\:1.3)", [("a:1.3", STEP)]),
        ("(a: b)", [("a: b", STEP)]),
        ("(a)(b)", [("ab", STEP)]),
    ],
)
def test_weights_are_those_of_web_uis(prompt: str, want: list[tuple[str, float]]) -> None:
    assert weights(prompt) == want


def test_in_plain_prompts_every_character_is_text() -> None:
    text = "(red:1.3] <lora:x:1> AND BREAK \\("
    ((got, weight, places),) = parts(text, PLAIN)
    assert (got, weight, list(places)) == (text, 1.0, list(range(len(text))))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("red (heart", r"prompt: \( at character 5 is not closed; write \\\( where it is text"),
        ("red heart)", r"prompt: \) at character 10 closes nothing that is open"),
        ("red:1.2)", r"prompt: \) at character 8 closes nothing"),
        ("[red)", r"prompt: \) at character 5 closes nothing"),
        ("[red", r"prompt: \[ at character 1 is not closed"),
        ("(red:-1)", r"prompt: the weight -1 at character 5 is not from 0 to 4"),
        ("(red:1.2.3)", r"the weight 1\.2\.3 at character 5 is not"),
        ("((red:3):3)", r"prompt: \( at character 2 weighs 9 with the brackets around it, the limit is 4"),
        ("a [red:blue:0.5]", r"prompt: : at character 7 in square brackets would change the prompt between steps"),
        ("[red|blue]", r"prompt: \| at character 5 in square brackets"),
        ("a <lora:x:0.5> b", r"prompt: '<lora:x:0.5>' at character 3: a prompt loads no weights"),
        ("cat AND dog", r"prompt: AND at character 5 would split the prompt.* lower case"),
        ("[a] " * (MAX_LOWERED + 1), rf"at most {MAX_LOWERED} parts .* another one begins at character {4 * MAX_LOWERED + 2}"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(prompt: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        parts(prompt, "webui")
    assert refused.value.param == "prompt"


@given(st.text("ab(:)[]\\|1.3 ", max_size=20))
def test_whoever_does_what_the_errors_say_has_a_prompt_in_the_end(prompt: str) -> None:
    for _ in range(len(prompt) + 1):
        try:
            parts(prompt, "webui")
        except InvalidInput as error:
            advice = re.search(r"^(.) at character (\d+) .*write (\\.) where it is text$", error.text)
            if "the weight" in error.text:  # there is another number to write, or none
                return
            assert advice
            sign, place, escaped = advice[1], int(advice[2]) - 1, advice[3]
            assert (prompt[place], escaped) == (sign, f"\\{sign}")
            prompt = prompt[:place] + escaped + prompt[place + 1 :]
    parts(prompt, "webui")


@given(st.text("ab(:)[]\\|1.3 ", max_size=40))
def test_parts_are_pieces_of_the_prompt_in_its_order_or_the_prompt_is_refused(prompt: str) -> None:
    try:
        read = parts(prompt, "webui")
    except InvalidInput:
        return
    places = [place for part in read for place in part.places]
    assert places == sorted(set(places))
    assert "".join(part.text for part in read) == "".join(prompt[place] for place in places)
    assert all(0 <= part.weight <= MAX_WEIGHT for part in read)
    neighbours = [(one, other) for one, other in pairwise(read) if one.places[-1] + 1 == other.places[0]]
    assert all(one.weight != other.weight for one, other in neighbours)


@pytest.mark.parametrize("prompt", ["[" * 2000 + "a" + "]" * 2000, r"\(" * 2000])
def test_a_prompt_may_nest_as_deep_as_it_likes(prompt: str) -> None:
    """compel's own grammar takes twice as long for each bracket more: there these would never end."""
    (part,) = parts(prompt, "webui")
    assert 0 <= part.weight <= MAX_WEIGHT
