"""How a search gets from one branch to another: by one branch of a UNet, by one block at either end of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from engine.branches import BlockPairs, Branches
from registry.schedule import Blocks, Branch

SHALLOW = 4  # the deepest of a UNet's branches with which partial steps begin


def first(branches: Branches, rng: Random) -> Branch:
    """One to begin with: a shallow one, or one that people set by hand."""
    if isinstance(branches, BlockPairs):
        return rng.choice(branches.usual)
    return rng.randint(1, min(SHALLOW, branches))


def mover(branches: Branches, by: int, rng: Random) -> Callable[[Branch], Branch]:
    """What changes branches by so much, as far as there are any: a transformer's all at the same end, the front or the back."""
    if not isinstance(branches, BlockPairs):
        return lambda branch: min(max(_number(branch) + by, 1), branches)
    front = rng.random() < 0.5

    def moved(branch: Branch) -> Branch:
        assert isinstance(branch, Blocks), "a transformer's"
        other = Blocks(branch.front + by, branch.back) if front else Blocks(branch.front, branch.back + by)
        return other if other in branches else branch

    return moved


def _number(branch: Branch) -> int:
    assert isinstance(branch, int), "a UNet's"
    return branch
