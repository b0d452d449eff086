"""What a request's LoRAs come to: which they are, whether its schedule may run with them, and how long they take to add."""

from __future__ import annotations

from collections.abc import Callable

from engine.notice import Notice
from registry.errors import InvalidInput
from registry.schedule import Schedule
from registry.tiers import REFERENCE
from server.api import GenerateRequest
from server.loras.adapter_set import BASE, AdapterSet
from server.loras.offered_loras import OfferedLoras
from server.requests.warnings import lora_not_validated


class LoraChoice:
    """One model's."""

    def __init__(
        self,
        offered: OfferedLoras | None = None,
        on_schedules: bool = True,
        seconds: Callable[[AdapterSet], float] = lambda _: 0.0,
    ) -> None:
        """on_schedules: whether schedules that were searched without LoRAs may run with them. seconds: to add a set."""
        self._offered, self._on_schedules, self.seconds = offered, on_schedules, seconds

    def of(self, request: GenerateRequest) -> AdapterSet:
        """What it asks for. Raises `InvalidInput` and `NotFound` naming the field."""
        if not request.loras:
            return BASE
        if self._offered is None:
            raise InvalidInput("this server adds none to its model: leave it out", param="loras")
        return self._offered.chosen(request.loras)

    def unmet(self, adapters: AdapterSet, schedule: Schedule) -> list[Notice]:
        """What is to be said of a schedule with these LoRAs. Raises `InvalidInput` where the operator allows it not."""
        if not adapters or _is_full(schedule):
            return []
        if not self._on_schedules:
            message = f"this server adds LoRAs to the full model only: ask for tier {REFERENCE}"
            raise InvalidInput(message, param="loras")
        return [lora_not_validated(str(adapters))]


def _is_full(schedule: Schedule) -> bool:
    """Whether it is the model itself: nothing was searched or fitted that LoRAs could spoil."""
    counts = schedule.counts()
    fitted = schedule.corrections or schedule.scaled_corrections or schedule.timesteps
    return not (counts["partial"] or counts["null"] or fitted)
