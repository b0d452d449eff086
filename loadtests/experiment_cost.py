"""What an experiment costs the requests it splits: one server and the same clients, with it running and paused, in turns.

    python -m loadtests.experiment_cost

On the simulated device with the shortest steps that make sense, so that the request's own path is a large part of its time.
Both arms cost the same MACs. Looks at requests per second, at latency, and at CPU seconds per request (of all processes of the
server, the recorder's threads included), each as the ratio of neighbouring turns. Writes experiment_cost.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from examples.launch import RunningService, started
from loadtests.clients import Tally, drive
from loadtests.experiment import begin, wait_until
from loadtests.mixes import MODEL, made, mixes
from registry.catalog import Catalog
from registry.commands.command_line import argument_parser, run_program
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Arm, Guardrail
from registry.schedule import Segment
from registry.stores.address import open_store

OUT = Path(".flexi/experiment-cost")
NAME = "cost"


def main() -> int:
    """Print the ratios, running over paused, with their ranges over the turns."""
    parser = argument_parser(__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=6, help="of each kind")
    arguments = parser.parse_args()
    registry = str(OUT / "registry")
    shutil.rmtree(OUT, ignore_errors=True)  # a declaration is for ever, and this one ends a day from now
    experiments = declared(registry)
    settings = {"FLEXI_REGISTRY": registry, "FLEXI_STATE": str(OUT / "state"), "FLEXI_WATCH_SECONDS": "0.2"}
    service = "loadtests.simulated_service:Flexiffusion"
    with started(settings, OUT / "server.log", service=service) as served:
        pairs = [  # whoever was first is second the next time
            {running: measure(served, experiments, running, arguments, turn) for running in (turn % 2 == 0, turn % 2 == 1)}
            for turn in range(arguments.turns)
        ]
        page = httpx.get(f"{served.address}/metrics").text.splitlines()
    ratios = {figure: [pair[True][figure] / pair[False][figure] for pair in pairs] for figure in pairs[0][True]}
    turns = [{str(running): figures for running, figures in pair.items()} for pair in pairs]
    result = {"clients": arguments.clients, "ratios": ratios, "turns": turns}
    (OUT / "experiment_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    for figure, values in ratios.items():
        spread = f"{min(values):.3f} to {max(values):.3f} in {len(values)} pairs of turns"
        print(f"{figure}: running over paused {np.median(values):.3f} ({spread})")
    print("\n".join(line for line in page if line.startswith("flexi_events")))
    return 0


def declared(registry: str) -> ExperimentCatalog:
    """A tier of ten full steps, and an experiment on it whose arms take as many."""
    mixes()["fewer"].publish(registry)
    catalog = Catalog(open_store(registry), MODEL.name, author="loadtests")
    control, twin = mixes()["fewer"].schedules["draft"], made(20, *[Segment(partial=())] * 10)
    catalog.publish(twin)
    arms = (Arm(name="control", digest=control.digest, weight=1), Arm(name="twin", digest=twin.digest, weight=1))
    guardrails = [
        Guardrail(metric=metric, compare="difference", limit=0.99, minimum_sample=100, consecutive=3)
        for metric in ("service_p95", "errors", "unplanned_steps")
    ]
    return begin(catalog.store, NAME, "draft", arms, guardrails)


def measure(
    served: RunningService, experiments: ExperimentCatalog, running: bool, arguments: argparse.Namespace, turn: int
) -> dict[str, float]:
    """One turn's figures: requests per second, latencies in seconds, CPU seconds per request. `turn` seeds the clients."""
    status = experiments.state(NAME).status
    if (status == "running") != running:
        experiments.act(NAME, "start" if running else "pause")
    wait_until(served.address, running)

    def body(wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"tier": "draft", "guidance_scale": 1.0, "unit": str(wanted["seed"])}

    before = cpu_seconds(served)
    tally: Tally = asyncio.run(drive(served.address, body, arguments.clients, 1.0, arguments.seconds, turn))
    latencies = [latency for tier in tally.latencies.values() for latency in tier]
    assert not tally.errors, f"{tally.errors} requests failed"
    spent = (cpu_seconds(served) - before) * arguments.seconds / (arguments.seconds + 1.0)
    return {
        "requests per second": tally.rate,
        "p50 latency": float(np.percentile(latencies, 50)),
        "p95 latency": float(np.percentile(latencies, 95)),
        "CPU seconds per request": spent / tally.requests,
    }


def cpu_seconds(served: RunningService) -> float:
    """CPU seconds, user and system, that the supervisor and its workers have used so far."""
    supervisor = psutil.Process(served.supervisor.pid)
    times = [process.cpu_times() for process in (supervisor, *supervisor.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


if __name__ == "__main__":
    run_program(main)
