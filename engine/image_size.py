"""Sizes of images in pixels: (height, width) in documents and tensors, written WIDTHxHEIGHT as OpenAI's clients write them."""

from __future__ import annotations

import re
from typing import NamedTuple

from typing_extensions import override

from registry.errors import InvalidInput
from registry.schedule import Schedule

PATTERN = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"  # as it is written
FORM = "write WIDTHxHEIGHT in pixels, such as 512x768 for an image that is higher than wide"


class ImageSize(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """Of "512x768": 512 wide and 768 high. Raises `InvalidInput`."""
        if not re.fullmatch(PATTERN, text):
            raise InvalidInput(FORM, param="size")
        width, height = map(int, text.split("x"))
        return cls(height, width)

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.height * self.width

    @override
    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def sizes_in(text: str) -> list[ImageSize]:
    """Those of a text with commas between. Raises `InvalidInput`."""
    return [ImageSize.parse(part.strip()) for part in text.split(",") if part.strip()]


def measured_sizes(schedule: Schedule, own: ImageSize) -> list[ImageSize]:
    """The sizes at which the schedule was measured. A document that says none was measured at the model's own."""
    sizes = schedule.validated.sizes if schedule.validated else ()
    return [ImageSize(*size) for size in sizes] or [own]


def covers_size(schedule: Schedule, size: ImageSize, own: ImageSize) -> bool:
    """Whether the schedule's figures hold at this size; the teacher is itself at any."""
    return size in measured_sizes(schedule, own) or schedule.counts()["full"] == schedule.solver.teacher_steps
