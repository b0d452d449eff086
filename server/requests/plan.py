"""What a request amounts to: which schedule, which images, how much work, and when they should be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.image_size import ImageSize
from engine.notice import Notice
from server.access.keys import Key
from server.batching.image_task import Edit, ImageResult, ImageSpec
from server.loras.adapter_set import AdapterSet
from server.requests.assignment import Assignment
from server.requests.image_file import ImageFormat
from server.tiers.active import ActiveSchedule


@dataclass(frozen=True)
class Plan:
    """The schedule, a spec for each image, their MACs, the predicted seconds, and in which format their files are wanted.

    size: of the images. relative_cost: of the schedule, to the teacher's at that size. `assignment` says what an experiment on
    its tier made of it, `warnings` which wishes of the request it does not meet. repeats: those of its images, by their place,
    that were made before; MACs are of the others.
    """

    key: Key
    entry: ActiveSchedule
    specs: Sequence[ImageSpec]
    macs: int
    predicted: float
    image_format: ImageFormat
    size: ImageSize
    relative_cost: float
    assignment: Assignment | None = None
    warnings: tuple[Notice, ...] = ()
    repeats: Mapping[int, ImageResult] = field(default_factory=dict)

    @property
    def to_make(self) -> list[int]:
        """The places of its images that are no repeats."""
        return [image for image in range(len(self.specs)) if image not in self.repeats]

    @property
    def edit(self) -> Edit | None:
        """What its images start from, if they do."""
        return self.specs[0].edit

    @property
    def adapters(self) -> AdapterSet:
        """The LoRAs of its images."""
        return self.specs[0].adapters

    @property
    def request_id(self) -> str:
        """The request that it was made for."""
        return self.specs[0].request_id

    @property
    def seed(self) -> int:
        """The first image's seed; image i has seed + i."""
        return self.specs[0].seed

    @property
    def in_background(self) -> bool:
        """Whether its images wait while there is any other client's work."""
        return self.specs[0].background

    @property
    def arm(self) -> str | None:
        """The arm of an experiment that serves the request, if it is enrolled in one."""
        return self.assignment.arm if self.assignment else None

    @property
    def arm_label(self) -> str:
        """The arm under which its work is counted."""
        return self.specs[0].arm
