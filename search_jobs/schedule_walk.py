"""One schedule on its way through its steps, among others that share UNet calls with it (`search_jobs.prefix_caching`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engine.extrapolation import extrapolated
from engine.program_step import ProgramStep
from registry.corrections import Correction
from registry.schedule import Schedule
from search_jobs.fit import UNetCall

Key = tuple[object, ...]
Level = tuple[float, float]


@dataclass
class MacsSpent:
    """MACs of UNet calls: `run` of those computed, `shared` of those that another schedule paid for; guidance rows included."""

    run: int = 0
    shared: int = 0


@dataclass(eq=False)
class ScheduleWalk:
    """A schedule on its way through its steps. levels: (α, σ) at which each of the steps ends, None for the last one.

    latent, before: as in `UNetCall`. feature (rows, c', h', w'): what the next partial steps reuse, extrapolated with the
    weight `extrapolation` from what the last full step `made` and from what was `reused` before. trials: calls that were made
    so far to find that weight. past: what is known of the steps so far. corrections: of these, where they are fitted.
    """

    schedule: Schedule
    steps: Sequence[ProgramStep]
    levels: Sequence[Level | None]
    latent: Tensor
    before: Tensor
    past: Key
    feature: Tensor | None = None
    made: Tensor | None = None
    reused: Tensor | None = None
    extrapolation: float = 0.0
    trials: list[UNetCall] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)
    position: int = 0
    spent: MacsSpent = field(default_factory=MacsSpent)

    @property
    def done(self) -> bool:
        """Whether every step has run."""
        return self.position == len(self.steps)

    @property
    def step(self) -> ProgramStep:
        """The next one."""
        return self.steps[self.position]

    @property
    def key(self) -> Key:
        """What the next UNet call is known by."""
        return (self.past, self.step.need, self.step.branch, self.step.timestep, self.extrapolation)

    def begin_reusing(self, made: Tensor, weight: float) -> None:
        """A full step made this feature."""
        self.made, self.reused = made, self.feature
        self.reuse(weight)

    def reuse(self, weight: float) -> None:
        """The partial steps from here on reuse its feature, extrapolated with this weight."""
        assert self.made is not None, "a full step comes first"
        self.feature, self.extrapolation = self.made, weight
        if weight:
            assert self.reused is not None, "a first feature is not extrapolated"
            self.feature = extrapolated(self.made, self.reused, self.made.new_full((len(self.made),), weight))

    @property
    def may_extrapolate(self) -> bool:
        """Whether this is the first of the partial steps that reuse a feature which may be extrapolated."""
        return self.step.kind == "partial" and self.position - 1 in self.schedule.extrapolating
