"""How well the workers of one server share a load: one to eight, on simulated cards.

    python -m loadtests.workers                       # on a virtual clock; the spread of connections is measured
    python -m loadtests.workers --real --haproxy haproxy    # real processes, at the shared port and behind deploy/haproxy

Eight clients a worker, each of which waits for its answer: as many as fill one wave of every worker, if they are spread evenly.
Held to the fluid limit (loadtests.fluid), or to so many times what one worker does.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from subprocess import Popen
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import httpx
import psutil

from examples.launch import RunningService, free_port, started, wait_until_ready
from loadtests.capacity.curves import read_curves
from loadtests.capacity.images import TierPlan
from loadtests.clients import Tally, drive
from loadtests.connections import at_once, idle_workers, one_by_one
from loadtests.fluid import FluidLimit
from loadtests.mixes import GUIDANCE, TIERS, WEIGHTS, TierMix, mixes
from loadtests.simulated import label
from loadtests.virtual_workers import Route, fewest_under_way, flow, in_turn, pinned
from registry.commands.command_line import argument_parser, run_program

CARD = "captured"
MAX_ROWS, UNET_ROWS = 16, 2
CLIENTS = MAX_ROWS // UNET_ROWS  # of each worker: together they fill its waves
MAX_WORKERS = 64  # as the server's FLEXI_WORKERS
ROUNDS = 3  # spreads that are measured, and as many runs on the virtual clock
IMAGES = 400  # of each worker in one such run
PROXY = Path("deploy/haproxy/haproxy.cfg")


def main() -> int:
    """Print what the arguments ask for."""
    parser = argument_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="how many, one after the other: 1 to 64")
    parser.add_argument("--real", action="store_true", help="real processes; else a virtual clock")
    parser.add_argument("--haproxy", help="the program: also behind it")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured in each round, if --real")
    parser.add_argument("--warm-up", type=float, default=8.0, help="seconds before that")
    parser.add_argument("--rounds", type=int, default=3, help="of each way in turn, if --real")
    parser.add_argument("--out", type=Path, default=Path(".flexi/workers"), help="folder for logs, if --real")
    arguments = parser.parse_args()
    if not all(1 <= workers <= MAX_WORKERS for workers in arguments.workers):
        parser.error(f"--workers must be 1 to {MAX_WORKERS}")
    if not (arguments.seconds > 0 and arguments.warm_up >= 0 and arguments.rounds > 0):
        parser.error("--seconds and --rounds must be above 0, and --warm-up not below it")
    if arguments.haproxy and not (arguments.real and shutil.which(arguments.haproxy)):
        parser.error("--haproxy must be a program that is there, and goes with --real")
    mix = mixes()["partial"]
    print(label(CARD))
    print(f"{CLIENTS} clients a worker; {mix.about}")
    if arguments.real:
        real(arguments, mix)
    else:
        virtual(arguments.workers, mix)
    return 0


def virtual(counts: list[int], mix: TierMix) -> None:
    """Rates as shares of so many times one GPU's, by the way requests find theirs."""
    curves, wanted = read_curves(CARD), dict(zip(TIERS, map(float, WEIGHTS), strict=True))
    plans = {tier: TierPlan.of(tier, schedule, curves.macs, UNET_ROWS) for tier, schedule in mix.schedules.items()}

    def share(workers: int, routes: list[Route]) -> float:
        rates = (
            flow(curves.card, plans, wanted, workers, CLIENTS * workers, route, IMAGES * workers, seed).rate
            for seed, route in enumerate(routes)
        )
        return mean(rates) / workers

    def evenly(workers: int) -> list[Route]:
        return [fewest_under_way(random.Random(seed)) for seed in range(ROUNDS)]

    alone, wants = share(1, evenly(1)), Tally(1.0, {tier: [1.0] * weight for tier, weight in zip(TIERS, WEIGHTS, strict=True)})
    limit = FluidLimit(curves.card, CLIENTS, MAX_ROWS, UNET_ROWS, mix.steps).rate(wants)
    print(f"one worker: {alone:.2f} images a second, {alone / limit:.2f} of the fluid limit; of so many times that:")
    widths = {"workers": 8, "fewest under way": 18, "in turn": 9, "kept open, at once": 20, "one by one": 12}
    print("".join(f"{name:>{width}}" for name, width in widths.items()))
    for workers in counts:
        together, slowly = spreads(workers)
        columns = [evenly(workers), [in_turn() for _ in range(ROUNDS)], list(map(pinned, together)), list(map(pinned, slowly))]
        shares = [share(workers, routes) / alone for routes in columns]
        print(
            f"{workers:>8}" + "".join(f"{one:>{width}.2f}" for one, width in zip(shares, [*widths.values()][1:], strict=True))
        )
        print(f"{'':>8}connections at once {together[0]}, one by one {slowly[0]}", flush=True)


def spreads(workers: int) -> tuple[list[list[int]], list[list[int]]]:
    """How connections were spread, opened at once and one by one; workers that got none are there with 0."""
    with idle_workers(workers) as address:
        measured = [[spread(address, CLIENTS * workers) for _ in range(ROUNDS)] for spread in (at_once, one_by_one)]
    together, slowly = ([[0] * (workers - len(counts)) + counts for counts in each] for each in measured)
    return together, slowly


def real(arguments: Any, mix: TierMix) -> None:
    """Rates as shares of the fluid limit, at the shared port and behind the proxy, and the cores that it took."""
    card = read_curves(CARD).card
    arguments.out.mkdir(parents=True, exist_ok=True)
    mix.publish(registry := str(arguments.out / "registry"))
    print(f"{'workers':>8}{'way':>14}{'images/s':>10}{'of the fluid limit':>20}{'errors':>8}{'p95, s':>8}{'cores':>7}")
    for workers in arguments.workers:
        with TemporaryDirectory(prefix="flexi-") as sockets:
            settings = {
                "FLEXI_REGISTRY": registry,
                "FLEXI_STATE": str(arguments.out / "state"),
                "FLEXI_WORKERS": str(workers),
                "FLEXI_WORKER_SOCKETS": sockets,
                "FLEXI_THREADS": "1",
                "FLEXI_MAX_WAVE_ROWS": str(MAX_ROWS),
                "OMP_NUM_THREADS": "1",
            }
            service = "loadtests.simulated_service:Flexiffusion"
            with started(settings, arguments.out / f"server-{workers}.log", patience=900, service=service) as server:
                wait_for_all(server, workers)
                ways: list[tuple[str, AbstractContextManager[str]]] = [("shared port", nullcontext(server.address))]
                if arguments.haproxy:
                    ways.append(("HAProxy", proxied(arguments.haproxy, sockets, arguments.out / f"proxy-{workers}.log")))
                with ExitStack() as stack:
                    addresses = {way: stack.enter_context(opened) for way, opened in ways}
                    tallies, cores = {way: Tally() for way in addresses}, dict.fromkeys(addresses, 0.0)
                    for seed in range(arguments.rounds):  # in turn, so that a machine with other things to do favours nobody
                        for way, address in addresses.items():
                            before, began = processor_seconds(server), monotonic()
                            tallies[way] += asyncio.run(driven(address, workers, seed, arguments))
                            cores[way] += (processor_seconds(server) - before) / (monotonic() - began) / arguments.rounds
                for way, tally in tallies.items():
                    limit = workers * FluidLimit(card, CLIENTS, MAX_ROWS, UNET_ROWS, mix.steps).rate(tally)
                    latencies = sorted(seconds for each in tally.latencies.values() for seconds in each)
                    figures = f"{tally.rate:>10.2f}{tally.rate / limit:>20.2f}{tally.errors:>8}"
                    figures += f"{latencies[int(0.95 * len(latencies))]:>8.1f}{cores[way]:>7.2f}"
                    print(f"{workers:>8}{way:>14}{figures}", flush=True)


async def driven(address: str, workers: int, seed: int, arguments: Any) -> Tally:
    """One round."""
    return await drive(address, guided, CLIENTS * workers, arguments.warm_up, arguments.seconds, seed)


def guided(wanted: dict[str, Any]) -> dict[str, Any]:
    """The request as ours takes it, with guidance."""
    return wanted | {"guidance_scale": GUIDANCE}


def processor_seconds(server: RunningService) -> float:
    """What the workers have used so far."""
    return sum(sum(worker.cpu_times()[:2]) for worker in psutil.Process(server.supervisor.pid).children())


def wait_for_all(server: RunningService, workers: int) -> None:
    """Until every worker takes requests."""
    while f"flexi_workers_up {float(workers)}" not in httpx.get(f"{server.address}/metrics", timeout=60).text.splitlines():
        sleep(1)


@contextmanager
def proxied(program: str, sockets: str, log: Path) -> Iterator[str]:
    """The address of HAProxy before the workers' sockets, with the configuration that we deliver."""
    port = free_port(0)
    environment = {**os.environ, "FLEXI_SOCKETS": sockets, "FLEXI_BIND": f"127.0.0.1:{port}"}
    with (
        log.open("w") as output,
        Popen([program, "-db", "-f", str(PROXY)], env=environment, stdout=output, stderr=output) as proxy,
    ):
        try:
            wait_until_ready(address := f"http://127.0.0.1:{port}", proxy, log, 60.0)
            yield address
        finally:
            proxy.terminate()


if __name__ == "__main__":
    run_program(main)
