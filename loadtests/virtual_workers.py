"""Clients that each wait for their answer, on several GPUs and a virtual clock: what the way to a worker costs.

The GPUs are those of `loadtests.capacity`: the server's own policy, queue and admission, without either.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from loadtests.capacity.gpu import ServerSettings, VirtualGpu
from loadtests.capacity.images import TierPlan, VirtualImage
from loadtests.card import Card

WARM_UP = 0.2  # of the images; they are not counted
USUAL = ServerSettings(max_queue_seconds=3600.0)  # nobody is refused: clients wait
# Which GPU a client's next request goes to: by the client's number, and by how many each GPU has under way.
Route = Callable[[int, Sequence[int]], int]


@dataclass
class Flow:
    """What came out. seconds: of the counted part; images: in it; latencies: theirs, in seconds."""

    seconds: float = 0.0
    images: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def fewest_under_way(chance: random.Random) -> Route:
    """As a proxy with least connections: of several with as few not always the first."""
    return lambda client, loads: min(range(len(loads)), key=lambda gpu: (loads[gpu], chance.random()))


def in_turn() -> Route:
    """As a round-robin proxy."""
    turns = iter(range(10**9))
    return lambda client, loads: next(turns) % len(loads)


def pinned(counts: Sequence[int]) -> Route:
    """Each client has a connection that stays open: the first counts[0] at the first GPU, and so on."""
    places = [gpu for gpu, count in enumerate(counts) for _ in range(count)]
    return lambda client, loads: places[client]


def flow(
    card: Card,
    plans: Mapping[str, TierPlan],
    mix: Mapping[str, float],
    gpus: int,
    clients: int,
    route: Route,
    images: int,
    seed: int = 0,
    settings: ServerSettings = USUAL,
) -> Flow:
    """So many images, by so many clients, on so many GPUs."""
    chance = random.Random(seed)
    tiers, weights = list(mix), list(mix.values())
    under_way, finished = dict[int, tuple[int, int]](), list[VirtualImage]()  # by the image: (client, GPU)
    servers = [VirtualGpu(card, list(plans.values()), settings, lambda image, now: finished.append(image)) for _ in range(gpus)]
    loads, visits, ends = [0] * gpus, [0] * gpus, list[tuple[float, int, int]]()
    made = Flow()

    def visit(gpu: int) -> None:
        """It has something else to do now: what was known of its next end is void."""
        visits[gpu] += 1
        if (end := servers[gpu].next_end()) < inf:
            heapq.heappush(ends, (end, gpu, visits[gpu]))

    def ask(client: int, now: float) -> None:
        gpu = route(client, loads)
        image = VirtualImage(plans[chance.choices(tiers, weights)[0]], now)
        under_way[id(image)] = client, gpu
        loads[gpu] += 1
        servers[gpu].advance(now)
        servers[gpu].submit(image)
        visit(gpu)

    for client in range(clients):
        ask(client, 0.0)
    ended, begin = 0, 0.0
    while ended < images:
        now, gpu, of_visit = heapq.heappop(ends)
        if of_visit != visits[gpu]:
            continue
        servers[gpu].advance(now)
        visit(gpu)
        for image in finished:
            client, gpu = under_way.pop(id(image))
            loads[gpu] -= 1
            ended += 1
            if ended == int(WARM_UP * images):
                begin = now
            elif ended > WARM_UP * images:
                made.latencies.append(now - image.born)
            ask(client, now)
        finished.clear()
        made.seconds = now - begin
    made.images = len(made.latencies)
    return made
