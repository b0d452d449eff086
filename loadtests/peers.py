"""Our service beside a naive server and BentoML's own batching: same model, same tiers, same clients, one run.

    python -m loadtests.peers --simulated            # a card's measured curves, waves as graphs; held to goals
    python -m loadtests.peers --simulated eager      # the same without graphs
    python -m loadtests.peers --real                 # the bundled model on the CPU
    python -m loadtests.peers --real --device cuda --dtype float16 --model FOLDER

Guidance is on. All servers stay up, and the rounds alternate between them, so that a machine with other things to do favours
nobody: look at the ratios. Writes peers.json and peers.txt anew after each round of each server. An error of anybody misses a
goal, whatever the device, and so does a server that does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loadtests.card import Card
from loadtests.clients import Tally, drive
from loadtests.competitor import loaded
from loadtests.contenders import Contender, contenders, running
from loadtests.fluid import FluidLimit
from loadtests.h100 import CARDS
from loadtests.measured_card import measured
from loadtests.mixes import GUIDANCE, MODEL, TierMix, mixes
from loadtests.simulated import label
from loadtests.standings import device_goals, faults, goals, standings, table
from registry.commands.command_line import argument_parser, run_program
from registry.errors import FlexiError, InvalidInput
from server import config

OUT = Path(".flexi/peers")
UNET_ROWS = 2  # of an image with guidance
Write = Callable[[dict[str, Any]], None]


def main() -> int:
    """Run what the arguments ask for, print the tables, and return 1 when a goal is missed."""
    arguments = parsed()
    os.environ |= settings_of(arguments)  # for this process as for the servers
    settings = config.load()
    model = loaded(settings)
    if not model.prompts.guides:
        raise InvalidInput("the peers ask for images with guidance, and this model has none", param="model")
    competing = {name: mix for name, mix in mixes(model).items() if name in arguments.mix}
    if arguments.real:
        card = measured(model, mixes(model)["partial"].schedules["draft"], settings)
        device = f"{device_name(arguments.device)}, {arguments.dtype}, {model.ref.name}; {card.about}"
    else:
        card, device = CARDS[arguments.simulated], label(arguments.simulated)
    print(device, flush=True)
    del model
    torch.cuda.empty_cache()  # the servers need the room
    results: dict[str, dict[str, Any]] = {}

    def write(result: dict[str, Any]) -> None:
        results[result["mix"]] = result
        (arguments.out / "peers.json").write_text(json.dumps(list(results.values()), indent=1) + "\n")
        (arguments.out / "peers.txt").write_text("\n\n".join(map(table, results.values())) + "\n")

    for mix in competing.values():
        compete(mix, card, device, arguments, write)
    print("\n\n".join(map(table, results.values())))
    return int(any(not goal["kept"] for result in results.values() for goal in result["goals"]))


def parsed() -> argparse.Namespace:
    """The arguments. Raises `InvalidInput` for those that make no sense."""
    parser = argument_parser(__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--simulated", nargs="?", const="captured", choices=list(CARDS), help="UNet and VAE only take a card's time [captured]"
    )
    kind.add_argument("--real", action="store_true", help="they compute")
    parser.add_argument("--device", help="of --real: cpu or cuda [cpu]")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="of --real [float32]")
    parser.add_argument("--model", type=Path, help="of --real: a diffusers folder [the bundled one]")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="measured in each round")
    parser.add_argument("--warm-up", type=float, default=12.0, help="seconds before each round that are not measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mix", choices=["fewer", "partial"], nargs="+", default=["fewer", "partial"])
    parser.add_argument("--max-rows", type=int, default=16, help="UNet rows in one call, the same for everybody")
    parser.add_argument("--start-seconds", type=float, default=400.0, help="in which a server must be ready")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for name, least in (("clients", 1), ("seconds", 1e-3), ("warm_up", 0), ("rounds", 1), ("max_rows", UNET_ROWS)):
        given = getattr(arguments, name)
        if min(given if isinstance(given, list) else [given]) < least:
            raise InvalidInput(f"must be at least {least}, got {given}", param=name)
    for name, default in (("device", "cpu"), ("dtype", "float32"), ("model", MODEL)):
        if arguments.simulated and getattr(arguments, name) is not None:
            raise InvalidInput("belongs to --real: the simulation has curves of its own", param=name)
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return arguments


def settings_of(arguments: argparse.Namespace) -> dict[str, str]:
    """FLEXI_* settings by which every server loads the same model in the same way; others stay as the environment has them."""
    settings = {
        "FLEXI_MODEL": str(arguments.model),
        "FLEXI_DEVICE": arguments.device,
        "FLEXI_DTYPE": arguments.dtype,
        "FLEXI_MAX_WAVE_ROWS": str(arguments.max_rows),
    }
    return settings | ({"FLEXI_CUDA_GRAPHS": str(arguments.simulated == "captured")} if arguments.simulated else {})


def device_name(device: str) -> str:
    """What torch calls it, and its version."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return f"{name}, torch {torch.__version__}"


def compete(mix: TierMix, card: Card, device: str, arguments: argparse.Namespace, write: Write) -> None:
    """All servers on one mix: rounds of everybody in turn, for each number of clients. Raises `FlexiError` without ours."""
    registry = arguments.out / f"registry-{mix.name}"
    mix.publish(str(registry))
    entrants = contenders(mix.name, settings_of(arguments), bool(arguments.simulated), registry)
    tallies: dict[int, dict[str, Tally]] = {}

    def fluid(clients: int) -> FluidLimit:
        return FluidLimit(card, clients, arguments.max_rows, UNET_ROWS, mix.steps)

    with running(entrants, arguments.out / mix.name, arguments.start_seconds) as starts:
        if fault := starts["ours"].fault:
            raise FlexiError(fault, param="ours")
        about = {
            "mix": f"{mix.name}: {mix.about}",
            "device": device,
            "max_rows": arguments.max_rows,
            "seconds_to_ready": {name: round(start.seconds, 1) for name, start in starts.items() if not start.fault},
            "did_not_start": {name: start.fault for name, start in starts.items() if start.fault},
        }
        ready = [entrant for entrant in entrants if starts[entrant.name].fault is None]
        for clients in arguments.clients:
            tallies[clients] = {entrant.name: Tally() for entrant in ready}
            for seed in range(arguments.rounds):
                for entrant in ready:
                    tally = asyncio.run(asked(entrant, starts[entrant.name].address, clients, seed, arguments))
                    tallies[clients][entrant.name] += tally
                    print(f"{mix.name}, {clients} clients, round {seed + 1}, {entrant.name}: {tally.rate:.2f}/s", flush=True)
                    rows = [row for count, each in tallies.items() for row in standings(each, fluid(count))]
                    judged = faults(rows, about["did_not_start"])
                    judged += goals(rows) if arguments.simulated == "captured" else []
                    judged += device_goals(rows, mix.steps) if arguments.device != "cpu" else []
                    write(about | {"load_average": os.getloadavg()[0], "rows": rows, "goals": judged})


async def asked(entrant: Contender, address: str, clients: int, seed: int, arguments: argparse.Namespace) -> Tally:
    """One round of one server."""

    def body(wanted: dict[str, Any]) -> dict[str, Any]:
        return entrant.body(wanted | {"guidance_scale": GUIDANCE})

    return await drive(address, body, clients, arguments.warm_up, arguments.seconds, seed)


if __name__ == "__main__":
    run_program(main)
