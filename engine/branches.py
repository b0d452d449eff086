"""Which branches a network has: how much of it partial steps may compute."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from registry.errors import InvalidInput
from registry.schedule import Blocks, Branch

USUAL = (1, 2, 4, 8)  # how many blocks a hand-set cache computes at one end, or at both


@dataclass(frozen=True)
class BlockPairs:
    """Those of a transformer of so many blocks: any number of the first and any of the last, as long as some are left out."""

    blocks: int

    def __contains__(self, branch: object) -> bool:
        return isinstance(branch, Blocks) and min(branch) >= 0 and branch.computed < self.blocks

    @property
    def all(self) -> list[Blocks]:
        """In ascending order."""
        return [Blocks(front, back) for front in range(self.blocks) for back in range(self.blocks - front)]

    @property
    def usual(self) -> list[Blocks]:
        """Those that people set by hand: a few blocks at the front, at the back, or as many at both ends; of a network of one
        block, none.
        """
        pairs = [Blocks(0, 0), *(pair for few in USUAL for pair in (Blocks(few, 0), Blocks(0, few), Blocks(few, few)))]
        return sorted(pair for pair in pairs if pair in self)


Branches: TypeAlias = int | BlockPairs  # a UNet's are the numbers from 1 to this one


def all_branches(branches: Branches) -> Collection[Branch]:
    """Every one, in ascending order."""
    return range(1, branches + 1) if isinstance(branches, int) else branches.all


def usual_branches(branches: Branches, most: int | None = None) -> Sequence[Branch]:
    """Those that a person would try, in ascending order: of a UNet the first `most`, or all."""
    if isinstance(branches, BlockPairs):
        return branches.usual
    return range(1, (branches if most is None else min(branches, most)) + 1)


def refuse_branch(branches: Branches, branch: Branch, param: str = "branch") -> None:
    """Raises `InvalidInput` unless it is one of these."""
    if isinstance(branches, BlockPairs):
        if branch not in branches:
            most = f"this transformer has {branches.blocks} blocks, of which a partial step computes fewer"
            raise InvalidInput(f"{most}, at the front and at the back (as in 1+0), got {branch}", param=param)
    elif not isinstance(branch, int) or not 1 <= branch <= branches:
        raise InvalidInput(f"this UNet has branches 1 to {branches}, got {branch}", param=param)
