"""What a stream gives, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from server.batching.image_task import ImageResult
from server.requests.plan import Plan


@dataclass(frozen=True)
class RequestPlanned:
    """What a request comes to, once its images are in the queue."""

    plan: Plan


@dataclass(frozen=True)
class StepMade:
    """Image `image` of a plan, 0-based, has so many of its computed steps behind it."""

    plan: Plan
    image: int
    step: int


@dataclass(frozen=True)
class PreviewMade:
    """Preview `index` of image `image` of a plan, both 0-based, as a file in base64."""

    plan: Plan
    image: int
    index: int
    file: str


@dataclass(frozen=True)
class ImageMade:
    """Image `image` of a plan, 0-based, as a file in base64, and what it took. marked: whether the file is.

    result: of a repeat, what it took when it was made.
    """

    plan: Plan
    image: int
    file: str
    result: ImageResult
    marked: bool = False

    @property
    def is_repeat(self) -> bool:
        """Whether nothing ran for it."""
        return self.image in self.plan.repeats


Made = RequestPlanned | StepMade | PreviewMade | ImageMade
