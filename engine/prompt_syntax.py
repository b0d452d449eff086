"""Weights that prompts give to their words: (word), (word:1.3) and [word], as the web UIs of Stable Diffusion write them.

What a weight does to a condition is `engine.weighted_text`'s. Reading a prompt takes one pass over it, however deep it nests:
clients write what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from registry.errors import InvalidInput

PromptSyntax = Literal["plain", "webui"]
SYNTAXES: tuple[PromptSyntax, ...] = get_args(PromptSyntax)
PLAIN: PromptSyntax = "plain"  # every character is text

MAX_CHUNKS = 8  # of the text encoder's length, in a prompt, whatever a setting says
STEP = 1.1  # what brackets without a number multiply or divide by
MAX_WEIGHT = 4.0  # of nested brackets together; from 2 on images fall apart
MAX_LOWERED = 16  # parts of a weight below 1: each runs the text encoders once more

_TOKEN = re.compile(r"\\[\\()\[\]:|]|:\s*(?P<weight>[+-]?[\d.]+)\s*\)|[()\[\]|:]|[^\\()\[\]|:]+|\\")
_ELSEWHERE = re.compile(r"(?P<lora><(?:lora|lyco|hypernet):[^>]*>)|\b(?P<word>AND|BREAK)\b")
_ESCAPE = "write \\{0} where it is text"


class Part(NamedTuple):
    """A run of a prompt's text that has one weight. places: where in the prompt each of its characters stands."""

    text: str
    weight: float
    places: Sequence[int]


def parts(prompt: str, syntax: PromptSyntax = PLAIN) -> list[Part]:
    """A prompt's text, without what is syntax in it, neighbours of one weight in one part. At least one part.

    Raises `InvalidInput` of the field `prompt`, naming the place (counted from 1), for brackets that do not fit together, for
    weights out of bounds, and for what web UIs have beside weights.
    """
    if syntax == PLAIN:
        return [Part(prompt, 1.0, range(len(prompt)))]
    merged = list[Part]()
    for text, weight, begin in _weighted(prompt):
        places = range(begin, begin + len(text))
        if merged and merged[-1].weight == weight:
            before = merged.pop()
            merged.append(Part(before.text + text, weight, [*before.places, *places]))
        else:
            merged.append(Part(text, weight, places))
    written = [part for part in merged if part.text.strip()]
    _refuse_many([part for part in written if part.weight < 1])
    return written or [Part("", 1.0, ())]


class _Bracket(NamedTuple):
    sign: str
    place: int
    weight: float  # of what it encloses, all brackets around it taken together


def _weighted(prompt: str) -> Iterator[tuple[str, float, int]]:
    """(text, weight, place) of each run of text."""
    _refuse_others(prompt)
    factors, enclosing = _factors(prompt), [_Bracket("", 0, 1.0)]
    for token in _TOKEN.finditer(prompt):
        text, place = token[0], token.start()
        if text in ("(", "["):
            weight = enclosing[-1].weight * factors[place]
            if weight > MAX_WEIGHT:
                raise _fault(f"weighs {weight:.3g} with the brackets around it, the limit is {MAX_WEIGHT:g}", text, place)
            enclosing.append(_Bracket(text, place, weight))
        elif text in (")", "]") or token["weight"] is not None:
            enclosing.pop()
        elif text.startswith("\\") and len(text) == 2:
            yield text[1], enclosing[-1].weight, place + 1
        else:
            yield text, enclosing[-1].weight, place


def _factors(prompt: str) -> dict[int, float]:
    """{place of an opening bracket: its factor}. Raises `InvalidInput` for brackets that do not fit together."""
    factors, opened = dict[int, float](), list[tuple[str, int]]()
    for token in _TOKEN.finditer(prompt):
        text, place = token[0], token.start()
        closes = "(" if text.endswith(")") and not text.startswith("\\") else "[" if text == "]" else ""
        if text in ("(", "["):
            opened.append((text, place))
        elif closes:
            sign, begin = opened.pop() if opened else ("", 0)
            if sign != closes:
                end = token.end() - 1
                raise _fault("closes nothing that is open", prompt[end], end)
            factors[begin] = _factor(closes, token["weight"], place)
        elif text in (":", "|") and opened and opened[-1][0] == "[":
            raise _fault("in square brackets would change the prompt between steps, which is not done here", text, place)
    if opened:
        raise _fault("is not closed", *opened[-1])
    return factors


def _factor(sign: str, weight: str | None, place: int) -> float:
    if weight is None:
        return STEP if sign == "(" else 1 / STEP
    try:
        factor = float(weight)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= MAX_WEIGHT:
        raise InvalidInput(f"the weight {weight} at character {place + 1} is not from 0 to {MAX_WEIGHT:g}", param="prompt")
    return factor


def _refuse_others(prompt: str) -> None:
    found = _ELSEWHERE.search(prompt)
    if found and found["lora"]:
        what = f"{found[0]!r} at character {found.start() + 1}: a prompt loads no weights here, the field loras does"
        raise InvalidInput(what, param="prompt")
    if found:
        what = f"{found[0]} at character {found.start() + 1} would split the prompt, which is not done here"
        raise InvalidInput(f"{what}; write it in lower case where it is a word", param="prompt")


def _refuse_many(lowered: Sequence[Part]) -> None:
    if len(lowered) > MAX_LOWERED:
        place = lowered[MAX_LOWERED].places[0] + 1
        message = f"at most {MAX_LOWERED} parts may weigh less than 1, and another one begins at character {place}"
        raise InvalidInput(message, param="prompt")


def _fault(what: str, sign: str, place: int) -> InvalidInput:
    return InvalidInput(f"{sign} at character {place + 1} {what}; {_ESCAPE.format(sign)}", param="prompt")
