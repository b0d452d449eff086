"""What is known of a request before an experiment assigns it to an arm: all that a report may explain noise by."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from registry.document import Document

Number = Annotated[float, Field(ge=0)]


class Covariates(Document):
    """Taken from the request, the clock and what its tier means by itself, never from the schedule of an arm.

    `predicted_seconds` is the forecast for the tier's own schedule, the queue of that moment included; `teacher_macs` what the
    teacher would take for all images of the request; `guidance` the scale that the tier's own schedule would give it.
    """

    arrived: AwareDatetime
    images: Annotated[int, Field(ge=1)]
    pixels: Annotated[int, Field(ge=1)]  # of one image
    prompt_characters: Annotated[int, Field(ge=0)]  # how many, never which
    guidance: Number
    predicted_seconds: Number
    teacher_macs: Annotated[int, Field(ge=0)]
