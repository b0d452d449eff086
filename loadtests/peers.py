"""Our service beside a naive server and BentoML's own batching: same model, same tiers, same clients, one run.

    python -m loadtests.peers --simulated            # a device that likes large batches; held to goals
    python -m loadtests.peers --real                 # the bundled model on the CPU

All servers stay up, and the rounds alternate between them, so that a machine with other things to do favours nobody: look at
the ratios. Writes peers.json and peers.txt. An error of anybody misses a goal, whatever the device.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from engine.loading import load
from loadtests.clients import Tally, drive
from loadtests.contenders import contenders, running
from loadtests.fluid import FluidLimit
from loadtests.mixes import MODEL, TierMix, mixes
from loadtests.simulated import LABEL
from loadtests.standings import faults, goals, standing, table
from registry.commands.command_line import argument_parser, run_program

OUT = Path(".flexi/peers")


def main() -> int:
    """Run what the arguments ask for, print the tables, and return 1 when a goal is missed."""
    parser = argument_parser(__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--simulated", action="store_true", help="UNet calls take 16 + 1·rows ms of sleep")
    kind.add_argument("--real", action="store_true", help="the bundled model on the CPU")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=20.0, help="measured in each round")
    parser.add_argument("--warm-up", type=float, default=8.0, help="seconds before each round that are not measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mix", choices=["fewer", "partial"], nargs="+", default=["fewer", "partial"])
    parser.add_argument("--max-rows", type=int, default=16, help="UNet rows in one call, the same for everybody")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    results = [compete(mix, arguments) for name, mix in mixes().items() if name in arguments.mix]
    text = "\n\n".join(map(table, results))
    (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "peers.txt").write_text(text + "\n")
    print(text)
    return int(any(not goal["kept"] for result in results for goal in result["goals"]))


def compete(mix: TierMix, arguments: argparse.Namespace) -> dict[str, Any]:
    """All servers on one mix: rounds of everybody in turn, for each number of clients."""
    registry = arguments.out / f"registry-{mix.name}"
    mix.publish(str(registry))
    entrants = contenders(mix.name, arguments.simulated, registry, arguments.max_rows)
    shares, rows = mix.shares(load(MODEL).macs), []
    with running(entrants, arguments.out / mix.name) as addresses:
        for clients in arguments.clients:
            tallies = {entrant.name: Tally() for entrant in entrants}
            for seed in range(arguments.rounds):
                for entrant in entrants:
                    address = addresses[entrant.name]
                    tally = asyncio.run(drive(address, entrant.body, clients, arguments.warm_up, arguments.seconds, seed))
                    tallies[entrant.name] += tally
                    print(f"{mix.name}, {clients} clients, round {seed + 1}, {entrant.name}: {tally.rate:.2f}/s", flush=True)
            fluid = FluidLimit(clients, arguments.max_rows, shares) if arguments.simulated else None
            rows += [standing(name, clients, tally, tallies["ours"].rate, fluid) for name, tally in tallies.items()]
    return {
        "mix": f"{mix.name}: {mix.about}",
        "device": LABEL if arguments.simulated else "the bundled model on the CPU",
        "max_rows": arguments.max_rows,
        "load_average": os.getloadavg()[0],
        "rows": rows,
        "goals": faults(rows) + (goals(rows) if arguments.simulated else []),
    }


if __name__ == "__main__":
    run_program(main)
