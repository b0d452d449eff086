"""The guidance scale of requests that name none: the one at which the schedule that serves them was validated."""

from __future__ import annotations

from engine.guidance import OFF, covers, default_scale, meant, nearest, validated_scales
from engine.model import Model
from server.tiers.active import ActiveSchedule, ActiveSchedules


class DefaultGuidance:
    """Knows the default scale of every schedule of one model."""

    def __init__(self, schedules: ActiveSchedules, model: Model, wanted: float | None, default_tier: str) -> None:
        """wanted: what `FLEXI_DEFAULT_GUIDANCE` says, if it is set. default_tier: whose scale the others take that say none."""
        self._schedules = schedules
        self._guides = model.prompts.guides
        self._set = wanted
        self._usual = model.usual_guidance
        without = model.few_steps and not model.embeds_guidance  # as distilled models do
        self._wanted = OFF if wanted is None and without else wanted and meant(wanted)
        self._default_tier = default_tier

    def of(self, entry: ActiveSchedule) -> float:
        """The scale that a request gets from this schedule.

        The setting, where the schedule was validated for it, or else the nearest of its scales. Without a setting, the scale
        that the schedule was made for. A schedule that says none, as the teacher, gets the setting, or else the scale of the
        default tier, so that images of both are comparable; while that tier is not in force, that of the dearest tier that
        says one.
        """
        if not self._guides:
            return OFF
        schedule = entry.schedule
        if self._wanted is None:
            own = default_scale(schedule, self._usual)
            return self._of_others() if own is None else own
        return self._wanted if covers(schedule, self._wanted) else nearest(validated_scales(schedule), self._wanted)

    def overruled(self) -> str | None:
        """In one line, which tiers do not take the scale that is set, and what they take instead; None where all do."""
        if self._set is None:
            return None
        if not self._guides:
            return f"FLEXI_DEFAULT_GUIDANCE is {self._set:g}, and the model has no guidance: it has no effect"
        scales = {tier.label: scale for tier in self._schedules.tiers() if (scale := self.of(tier)) != meant(self._set)}
        if not scales:
            return None
        instead = ", ".join(f"{tier} {scale:g}" for tier, scale in scales.items())
        return (
            f"FLEXI_DEFAULT_GUIDANCE is {self._set:g}, and tiers that were validated elsewhere keep their own scale: {instead}"
        )

    def _of_others(self) -> float:
        tiers = self._schedules.tiers()
        others = [tier for tier in tiers if tier.tier == self._default_tier] or reversed(tiers)
        scales = (default_scale(tier.schedule, self._usual) for tier in others)
        return next((scale for scale in scales if scale is not None), self._usual)
