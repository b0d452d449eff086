"""What an experiment's declaration says of a ramp that goes on by itself."""

from __future__ import annotations

from pydantic import Field

from registry.document import Document


class AutomaticRamp(Document):
    """When `ramp --auto` raises a share, and when it gives up waiting.

    `harm_margin` is in the unit of the primary metric's `minimal_effect`; without one it is twice that. A share is raised when
    no arm can be worse than control by so much any more. An arm is rolled back that surely is, or that is surely worse at all
    by what its goal allows. `patience_minutes` is for one stage, after the stage's own `minutes`.
    """

    harm_margin: float | None = Field(default=None, gt=0, le=100)
    patience_minutes: float = Field(default=1440, gt=0, le=525_600)
