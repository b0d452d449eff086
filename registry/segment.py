"""One piece of a schedule, and how much of a network its partial steps compute."""

from __future__ import annotations

from typing import NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from registry.document import Document, misfit
from registry.errors import InvalidInput


class Blocks(NamedTuple):
    """A transformer's branch: a partial step computes so many of its first blocks and of its last ones; any may be 0."""

    front: int
    back: int

    def __str__(self) -> str:
        return f"{self.front}+{self.back}"

    @property
    def computed(self) -> int:
        """How many blocks; the others are the middle."""
        return self.front + self.back


Branch: TypeAlias = int | Blocks  # a UNet's is the number of one of its skips, counted from the output side


def said(branch: Branch) -> int | str:
    """As logs, traces and machines' output say it: a UNet's as its number, a transformer's as 2+1."""
    return branch if isinstance(branch, int) else str(branch)


def parse_branch(text: str) -> Branch:
    """As `said` has it. Raises `InvalidInput`."""
    front, plus, back = text.partition("+")
    if not (front.isdecimal() and (back.isdecimal() if plus else True)):
        raise InvalidInput(f"must be a number for a UNet, two (2+1) for a transformer, got {text!r}", param="branch")
    return Blocks(int(front), int(back)) if plus else int(front)


class Segment(Document):
    """One piece of the trajectory: full at offset 0, partial at the offsets `partial`, null elsewhere.

    `branch` says how much of the UNet the partial steps compute: 1-based, counted from the output side (the "skip
    branch" of DeepCache, arXiv 2312.00858). Without partial steps it has no meaning and must be 1, so that one
    behaviour has one digest. Of a transformer it is the number of blocks at the front, and `back` that at the back, which
    only transformers have: of these either may be 0.
    """

    partial: tuple[int, ...] = ()
    branch: int = Field(default=1, ge=0)
    back: int | None = Field(default=None, ge=0, exclude_if=lambda back: back is None)  # left out: UNets keep their digests

    @model_validator(mode="after")
    def _offsets(self) -> Self:
        if list(self.partial) != sorted(set(self.partial)):
            raise misfit(f"offsets must be sorted and distinct, got {list(self.partial)}", "partial")
        if self.partial and self.partial[0] < 1:
            raise misfit(f"offset 0 is the full step, offsets start at 1, got {self.partial[0]}", "partial")
        if not self.partial and self.branch != 1:
            raise misfit(f"must be 1 in a segment without partial steps, got {self.branch}", "branch")
        if not self.partial and self.back is not None:
            raise misfit(f"must be left out in a segment without partial steps, got {self.back}", "back")
        if self.back is None and self.branch < 1:
            raise misfit("must be at least 1, or say back, the blocks at a transformer's other end; got 0", "branch")
        return self

    @classmethod
    def reusing(cls, branch: Branch, partial: tuple[int, ...]) -> Self:
        """With partial steps of this branch at these offsets; without offsets, one without partial steps."""
        if not partial:
            return cls()
        if isinstance(branch, Blocks):
            return cls(partial=partial, branch=branch.front, back=branch.back)
        return cls(partial=partial, branch=branch)

    @property
    def computes(self) -> Branch:
        """The branch of its partial steps."""
        return self.branch if self.back is None else Blocks(self.branch, self.back)
