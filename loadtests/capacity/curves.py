"""What a planner must know of a GPU: a card's curves, and the MACs by which admission counts; as a file, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.architectures import SD1, TOKENS
from engine.macs import count_steps
from loadtests.card import FULL, CallCost, Card
from loadtests.h100 import CARDS, WHERE
from registry.document import first_fault
from registry.errors import InvalidInput, NotFound

Milliseconds = dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0, allow_inf_nan=False)]]  # by rows, or by images


class _Document(BaseModel):
    """The file. calls, macs: by branch of partial steps, `full` for full ones."""

    model_config = ConfigDict(extra="forbid", strict=True)

    about: str
    calls: dict[str, Milliseconds]
    decoding: Milliseconds
    macs: dict[str, Annotated[float, Field(gt=0)]]


@dataclass(frozen=True)
class Curves:
    """A card, and the MACs of one UNet row of a step, by branch, `FULL` for a full one."""

    card: Card
    macs: Mapping[int, float]

    def write(self, file: Path) -> None:
        """For `read_curves`."""
        calls = {_name(branch): dict(call.device) for branch, call in self.card.calls.items()}
        macs = {_name(branch): float(macs) for branch, macs in self.macs.items()}
        document = _Document(about=self.card.about, calls=calls, decoding=dict(self.card.decoding.device), macs=macs)
        file.write_text(document.model_dump_json(indent=1) + "\n")


def read_curves(name: str) -> Curves:
    """Of a file, or those of `loadtests.h100` by the name of its card.

    Raises `NotFound`, and `InvalidInput` naming the field.
    """
    if name in CARDS:
        card = CARDS[name]
        counted = count_steps({"_class_name": "UNet2DConditionModel", **SD1.unet}, (4, 64, 64), TOKENS)
        macs = {branch: float(counted.partial[branch].macs) for branch in card.calls if branch != FULL}
        about = f"{card.about} ({WHERE})"
        return Curves(Card(about, card.calls, card.decoding), macs | {FULL: float(counted.full.macs)})
    file = Path(name)
    if not file.is_file():
        raise NotFound(f"there is no file {name}, and the cards known by name are {', '.join(CARDS)}", param="model")
    try:
        document = _Document.model_validate_json(file.read_bytes())
        calls = {_branch(kind): CallCost(times) for kind, times in document.calls.items() if times}
        macs = {_branch(kind): macs for kind, macs in document.macs.items()}
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(f"{file}: {fault.text}", param=fault.param or "model") from None
    if not (FULL in calls and FULL in macs and document.decoding):
        raise InvalidInput(f"{file} says nothing of full steps, of their MACs, or of decoding", param="model")
    return Curves(Card(document.about, calls, CallCost(document.decoding)), macs)


def _name(branch: int) -> str:
    return "full" if branch == FULL else str(branch)


def _branch(name: str) -> int:
    if name == "full":
        return FULL
    if not name.isdecimal() or int(name) < 1:
        raise InvalidInput(f"must be `full` or the number of a branch, got {name!r}", param="calls")
    return int(name)
