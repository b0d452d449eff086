"""Scales of classifier-free guidance: the largest that is taken, what counts as off, and where a schedule was validated."""

from __future__ import annotations

from registry.schedule import Schedule

MAX_SCALE = 30.0  # of a search, and of a request
OFF = 1.0
USUAL_CLASSES = 3.0  # of CompVis' notebook for LDM-4-G: no pipeline of diffusers says one for it
USUAL_FLUX = 3.5  # the same of FLUX.1-dev, which takes it as an input: of diffusers' pipeline for it
USUAL_EMBEDDED = 8.5  # the same where the UNet takes it as an input: of diffusers' pipeline for latent consistency models


def meant(scale: float) -> float:
    """The scale that is applied: one of at most 1 switches guidance off, as in diffusers."""
    return max(OFF, scale)


def validated_scales(schedule: Schedule) -> tuple[float, ...]:
    """The scales for which the schedule's document says that it is validated, the smallest first; () where it says none.

    Numbers that no request could ask for are left out: the document is not part of what a digest vouches for.
    """
    said = schedule.validated.guidance if schedule.validated else ()
    return tuple(sorted({meant(scale) for scale in said if 0 <= scale <= MAX_SCALE}))


def covers(schedule: Schedule, scale: float) -> bool:
    """Whether the schedule was validated for this scale: its corrections are of several, and it lies between, or it is one."""
    scales = validated_scales(schedule)
    if schedule.scaled_corrections is None or not scales:
        return scale in scales
    return scales[0] <= scale <= scales[-1]


def default_scale(schedule: Schedule, wanted: float) -> float | None:
    """The scale that its document gives to requests that name none, or else the validated one nearest to what is wanted.

    None where the document says nothing of scales.
    """
    scales = validated_scales(schedule)
    said = schedule.validated.default_guidance if schedule.validated else None
    if said is not None and 0 <= said <= MAX_SCALE:
        return meant(said)
    return nearest(scales, wanted) if scales else None


def scale_for(schedule: Schedule, usual: float) -> float:
    """The scale where nobody says one: the schedule's, as `default_scale` has it, else the model's usual one."""
    own = default_scale(schedule, usual)
    return usual if own is None else own


def nearest(scales: tuple[float, ...], wanted: float) -> float:
    """Of these scales the one nearest to what is wanted, of two as near the smaller; what is wanted where there are none."""
    return min(scales, key=lambda scale: (abs(scale - wanted), scale), default=wanted)
