"""What computed steps add to their solver's numbers, at one scale of classifier-free guidance or at several."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from registry.document import Document


class Correction(Document):
    """What one computed step adds to its solver's own numbers (`engine.program`), fitted to land on the teacher's path.

    `guidance` is a factor on the request's guidance scale; the next three are added to what the next latent takes of the latent
    now, of the UNet's guided output, and of the clean latent predicted one step before. `extrapolation` is of full steps: the
    partial steps after one reuse not its deep feature F, but F + extrapolation · (F − what was reused before).
    """

    guidance: float = Field(default=1.0, ge=-100, le=100)
    latent: float = Field(default=0.0, ge=-100, le=100)
    output: float = Field(default=0.0, ge=-100, le=100)
    before: float = Field(default=0.0, ge=-100, le=100)
    extrapolation: float = Field(
        default=0.0, ge=-100, le=100, exclude_if=lambda weight: weight == 0
    )  # left out: documents without it keep their digest

    def towards(self, other: Correction, share: float) -> Correction:
        """Each number so far on the way to the other's: 0 is here, 1 is there."""
        return Correction(
            guidance=self.guidance + share * (other.guidance - self.guidance),
            latent=self.latent + share * (other.latent - self.latent),
            output=self.output + share * (other.output - self.output),
            before=self.before + share * (other.before - self.before),
            extrapolation=self.extrapolation + share * (other.extrapolation - self.extrapolation),
        )


class ScaledCorrections(Document):
    """The corrections of all computed steps, fitted at one scale of classifier-free guidance; 1 is without guidance."""

    guidance: float = Field(ge=1, le=100)
    corrections: tuple[Correction, ...]


def at_scale(fits: Sequence[ScaledCorrections], guidance: float) -> tuple[Correction, ...]:
    """The corrections for images of this scale, of fits at ascending ones.

    Between two scales at which they were fitted each number is taken linearly, past the last ones it is that of the last
    (docs/measurements.md has both beside the corrections of one scale and none).
    """
    above = next((i for i, fitted in enumerate(fits) if fitted.guidance >= guidance), None)
    if above is None:
        return fits[-1].corrections
    high = fits[above]
    if above == 0 or high.guidance == guidance:
        return high.corrections
    low = fits[above - 1]
    share = (guidance - low.guidance) / (high.guidance - low.guidance)
    return tuple(one.towards(other, share) for one, other in zip(low.corrections, high.corrections, strict=True))
