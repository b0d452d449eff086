"""A virtual server whose images have deadlines, and which may let one go on with fewer steps at a segment's end.

The queue, the tiers' shares, the policy, admission and the forecast are the server's own (`loadtests.capacity`).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count
from math import inf
from typing import NamedTuple

from typing_extensions import override

from benchmarks.rescue.fidelity import Switch
from loadtests.capacity.gpu import ServerSettings, VirtualGpu
from loadtests.capacity.images import TierPlan, VirtualImage
from loadtests.card import Card
from server.batching.forecast import EngineLoad

AUTO = "auto"


class When(Enum):
    """At which segment's ends images are rescued."""

    NEVER = "never"
    RUNNING = "once it runs"  # before its second segment, or a later one
    ALWAYS = "also before its first step"


class Arrival(NamedTuple):
    """A request for one image. tier: of a plan, or `auto`. patience: seconds until its deadline."""

    at: float
    tier: str
    patience: float


def arrivals(
    rate: float, mix: Mapping[str, float], patience: Mapping[str, Sequence[float]], count: int, seed: int
) -> list[Arrival]:
    """At random times, `rate` a second (a Poisson process). mix: how often each tier is wanted; patience: its deadlines, each
    as often as another."""
    chance, now, found = random.Random(seed), 0.0, list[Arrival]()
    for _ in range(count):
        now += chance.expovariate(rate)
        (tier,) = chance.choices(list(mix), list(mix.values()))
        found.append(Arrival(now, tier, chance.choice(patience[tier])))
    return found


class HurriedImage(VirtualImage):
    """An image with a deadline. done_at: when its pixels were there. rescue: what became of it, if it was rescued."""

    __slots__ = ("done_at", "rescue")

    def __init__(self, plan: TierPlan, born: float, deadline: float) -> None:
        super().__init__(plan, born, deadline)
        self.done_at = inf
        self.rescue: Switch | None = None

    @property
    def in_time(self) -> bool:
        """Whether its deadline was met."""
        return self.done_at <= self.deadline


@dataclass(frozen=True)
class Beside:
    """A virtual image as the forecast sees one in flight."""

    image: VirtualImage

    def next_macs(self, steps: int) -> int:
        """As `ImageTask.next_macs`."""
        before, position = self.image.plan.macs_before, self.image.position
        later = max(position + steps - len(before) + 1, 0)
        return before[position + steps - later] - before[position] + later * before[-1] // (len(before) - 1)


class RescuingGpu(VirtualGpu):
    """Before each wave it looks at the images whose next step begins a segment: one that is forecast to miss its deadline goes
    on with the dearest suffix that is forecast to meet it, once; where none is, it stays as it is."""

    def __init__(
        self, card: Card, plans: Mapping[str, TierPlan], suffixes: Mapping[Switch, TierPlan], when: When,
        settings: ServerSettings | None = None,
    ) -> None:  # fmt: skip
        """suffixes: the whole plan of an image that is rescued so."""
        super().__init__(card, list(plans.values()), settings or ServerSettings(), self._finish)
        self.plans, self._when = plans, when
        self._suffixes = {
            place: sorted(((switch, plan) for switch, plan in suffixes.items() if switch[:2] == place), key=_macs, reverse=True)
            for place in {switch[:2] for switch in suffixes}
        }
        self._decode_seconds = 2 * card.decoding.device_seconds(1)

    def dearest(self, arrival: Arrival) -> str:
        """What `auto` chooses, as `TierChoice` does: the dearest tier that should keep the deadline, or the cheapest."""
        in_order = sorted(self.plans.values(), key=lambda plan: plan.macs_before[-1])
        load = self._load(self._inside, dict(self._queue.macs()))
        kept = [plan for plan in in_order if self._seconds_of(load, plan, 0) <= arrival.patience]
        return (kept or in_order)[-1 if kept else 0].tier

    def give_up(self, image: HurriedImage) -> None:
        """Its deadline has passed: what is not done of it is not wanted any more."""
        if image.done_at < inf:
            return
        if image.done:  # its last wave is at work, or its decoding
            return
        if image in self._inside:
            self._inside = [other for other in self._inside if other is not image]
            self._free += image.unet_rows
        else:
            self._queue.remove(image)
        self.admission.done("anybody", image.remaining_macs)

    def _finish(self, image: VirtualImage, now: float) -> None:
        assert isinstance(image, HurriedImage)
        image.done_at = now

    @override
    def look(self) -> None:
        if self._when is When.NEVER:
            return
        for image in sorted(self._inside, key=lambda image: image.deadline):
            assert isinstance(image, HurriedImage)
            place = (image.tier, image.position)
            if image.rescue or place not in self._suffixes or (not image.position and self._when is When.RUNNING):
                continue
            load = self._load([other for other in self._inside if other is not image], {})
            left = image.deadline - self.now
            if self._seconds_of(load, image.plan, image.position) <= left:
                continue
            for switch, plan in self._suffixes[place]:
                if self._seconds_of(load, plan, image.position) <= left:
                    self.admission.done("anybody", image.plan.macs_before[-1] - plan.macs_before[-1])
                    image.plan, image.rescue = plan, switch
                    break

    def _load(self, inside: Sequence[VirtualImage], waiting: Mapping[str, int]) -> EngineLoad:
        return EngineLoad(waiting, [Beside(image) for image in inside], self.admission.seconds_per_mac, self._decode_seconds)

    def _seconds_of(self, load: EngineLoad, plan: TierPlan, position: int) -> float:
        needs, macs = plan.needs[position:], plan.macs_before[-1] - plan.macs_before[position]
        alone = sum(self._policy.curve.seconds(need, plan.unet_rows) for need in needs)
        return load.finish(plan.tier, len(needs), macs, 1, alone)


def run(gpu: RescuingGpu, load: Sequence[Arrival]) -> list[HurriedImage]:
    """All of a load's images, once the last is done or given up."""
    images, number, plans = list[HurriedImage](), count(len(load)), gpu.plans
    events: list[tuple[float, int, Arrival | HurriedImage]] = [(one.at, i, one) for i, one in enumerate(load)]
    heapq.heapify(events)
    while events or gpu.next_end() < inf:
        end = gpu.next_end()
        if not events or end < events[0][0]:
            gpu.advance(end)
            continue
        now, _, event = heapq.heappop(events)
        gpu.advance(now)
        if isinstance(event, HurriedImage):
            gpu.give_up(event)
            continue
        tier = gpu.dearest(event) if event.tier == AUTO else event.tier
        image = HurriedImage(plans[tier], now, now + event.patience)
        images.append(image)
        heapq.heappush(events, (image.deadline, next(number), image))
        gpu.submit(image)
    return images


def _macs(found: tuple[Switch, TierPlan]) -> int:
    return found[1].macs_before[-1]
