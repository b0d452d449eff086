"""The planner against a running server: one load, answered by `bentoml serve` on a simulated card, and on the virtual clock.

    python -m loadtests.capacity.against --rates 2 4 6 --seconds 120

Requests come at the same random times, whether or not earlier ones are answered. What the planner leaves out is in the server's
figures: HTTP, text encoders, image files, and a host with other things to do. So is what `mean` shows of it.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from statistics import mean
from time import monotonic

import httpx

from examples.launch import started
from loadtests.capacity.cluster import Load, Outcome, simulate
from loadtests.capacity.curves import read_curves
from loadtests.capacity.gpu import ServerSettings
from loadtests.capacity.images import TierPlan
from loadtests.clients import PROMPTS, TIMEOUT
from loadtests.mixes import TIERS, WEIGHTS, mixes
from loadtests.simulated import label
from registry.commands.command_line import argument_parser, run_program

CARD = "captured"
MAX_ROWS, UNET_ROWS, MAX_QUEUE_SECONDS = 16, 2, 10.0
WARM_UP = 24  # requests before the first measured one


def main() -> None:
    """Print both, rate by rate."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 4.0, 6.0, 12.0], help="requests a second")
    parser.add_argument("--seconds", type=float, default=120.0, help="for so long requests come, at each rate")
    parser.add_argument("--out", type=Path, default=Path(".flexi/against"), help="folder for the log and the registry")
    arguments = parser.parse_args()
    if min(arguments.rates) <= 0 or arguments.seconds <= 0:
        parser.error("--rates and --seconds must be above 0")
    mix, curves = mixes()["partial"], read_curves(CARD)
    plans = {tier: TierPlan.of(tier, schedule, curves.macs, UNET_ROWS) for tier, schedule in mix.schedules.items()}
    wanted = dict(zip(TIERS, map(float, WEIGHTS), strict=True))
    arguments.out.mkdir(parents=True, exist_ok=True)
    mix.publish(registry := str(arguments.out / "registry"))
    settings = {
        "FLEXI_REGISTRY": registry,
        "FLEXI_STATE": str(arguments.out / "state"),
        "FLEXI_THREADS": "1",
        "FLEXI_MAX_WAVE_ROWS": str(MAX_ROWS),
        "FLEXI_MAX_QUEUE_SECONDS": str(MAX_QUEUE_SECONDS),
        "OMP_NUM_THREADS": "1",
    }
    print(label(CARD), f"One server; {mix.about}; requests at random times for {arguments.seconds:g} s", sep="\n")
    service = "loadtests.simulated_service:Flexiffusion"
    with started(settings, arguments.out / "server.log", patience=900, service=service) as server:
        asyncio.run(answered(server.address, Load(8.0, wanted, WARM_UP)))
        print(
            f"{'requests/s':>10}{'':>10}{'mean':>8}" + "".join(f"{tier + ' p50':>16}{'p95':>7}" for tier in TIERS) + "  refused"
        )
        for rate in arguments.rates:
            load = Load(rate, wanted, round(rate * arguments.seconds), seed=1)
            policy = ServerSettings(MAX_ROWS, MAX_QUEUE_SECONDS)
            told(rate, "planned", simulate(curves.card, plans, load, 1, settings=policy))
            told(rate, "answered", asyncio.run(answered(server.address, load)))


def told(rate: float, name: str, outcome: Outcome) -> None:
    """One line of the table, in seconds."""
    every = [seconds for tier in outcome.latencies.values() for seconds in tier]
    columns = (f"{outcome.quantile(0.5, tier):>16.2f}{outcome.quantile(0.95, tier):>7.2f}" for tier in TIERS)
    print(f"{rate:>10g}{name:>10}{mean(every):>8.2f}{''.join(columns)}{outcome.refused_share:>9.1%}", flush=True)


async def answered(address: str, load: Load) -> Outcome:
    """What became of the load at a running server; 429 and 503 are refusals. Raises what httpx raises for other errors."""
    outcome, begin, chance = Outcome(), monotonic(), random.Random(load.seed)
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, limits=httpx.Limits(max_connections=None)) as http:

        async def ask(tier: str, body: dict[str, object]) -> None:
            since = monotonic()
            reply = await http.post("/generate", json=body)
            if reply.status_code in (429, 503):
                outcome.refused[tier] += 1
            else:
                reply.raise_for_status()
                outcome.latencies[tier].append(monotonic() - since)

        tasks: list[asyncio.Task[None]] = []
        for born, tier in load.arrivals():
            body = {"prompt": chance.choice(PROMPTS), "tier": tier, "seed": chance.randrange(2**31)}
            await asyncio.sleep(max(0.0, begin + born - monotonic()))
            tasks.append(asyncio.create_task(ask(tier, body)))
        await asyncio.gather(*tasks)
    outcome.end = monotonic() - begin
    return outcome


if __name__ == "__main__":
    run_program(main)
