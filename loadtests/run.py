"""make load: a service of its own, one locust profile against it, the result held to limits.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx

from examples.launch import FOR_SMALL_MODELS, serving
from loadtests import exported
from loadtests.check import main as check
from loadtests.client_stats import ClientStats
from loadtests.experiment import split
from loadtests.mixes import mixes
from registry.commands.command_line import argument_parser, run_program

HERE = Path(__file__).parent
OUT = Path(".flexi/load")
LIMITS = HERE / "limits.json"


def main() -> int:
    """Run the profile and return check.py's exit code."""
    profiles = json.loads(LIMITS.read_text())
    parser = argument_parser(__doc__)
    parser.add_argument("--profile", choices=list(profiles), default="mixed")
    parser.add_argument("--registry", help="with the tiers draft and balanced; without it, one made for the test")
    parser.add_argument("--users", type=int)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    profile, out = profiles[arguments.profile], arguments.out / arguments.profile
    shutil.rmtree(out, ignore_errors=True)  # an experiment of a run that was killed would still hold its tier
    out.mkdir(parents=True)
    if arguments.registry is None:
        arguments.registry = str(out / "registry")
        mixes()["partial"].publish(arguments.registry)
    settings = {"FLEXI_REGISTRY": arguments.registry, "FLEXI_STATE": str(out / "state"), "FLEXI_WATCH_SECONDS": "1"}
    settings |= FOR_SMALL_MODELS
    settings |= {"FLEXI_SIZES": ",".join(profile["sizes"])} if "sizes" in profile else {}
    settings |= {"FLEXI_LORAS": profile["loras"]} if "loras" in profile else {}
    users, seconds = arguments.users or profile.get("users"), arguments.seconds or profile.get("seconds")
    weights = profile.get("arms")
    with (
        serving(settings, out / "server.log") as address,
        split(arguments.registry, address, weights) if weights else nullcontext(),
    ):
        result = measure(arguments.profile, address, users, seconds, out)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return check(out / "result.json", LIMITS, arguments.profile)


def measure(profile: str, address: str, users: int | None, seconds: int | None, out: Path) -> dict[str, Any]:
    """Run the profile; return what its users saw and what the service exported meanwhile, as `ClientStats.result` does."""
    before = exported.macs(address)
    run_locust(profile, address, users, seconds, out)
    exported.wait_until_idle(address)
    tiers = httpx.get(f"{address}/v1/tiers", timeout=10).raise_for_status().json()["tiers"]
    relative_costs = {tier["tier"]: tier["relative_cost"] for tier in tiers}
    return read_stats(out / "client_stats.json").result(exported.macs(address) - before, relative_costs)


def run_locust(profile: str, address: str, users: int | None, seconds: int | None, out: Path) -> None:
    """Drive the service; requests in flight at the end are waited for, so that every MAC is billed.

    Profiles with a shape of their own bring their users and their time with them.
    """
    locust = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--exit-code-on-error", "0"]
    locust += ["--locustfile", str(HERE / "profiles" / f"{profile}.py"), "--host", address, "--stop-timeout", "120"]
    if users:
        locust += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"]
    subprocess.run(locust, check=True, env={**os.environ, "LOADTEST_STATS": str(out / "client_stats.json"), "PYTHONPATH": "."})


def read_stats(path: Path) -> ClientStats:
    """The statistics that the locust process left."""
    stats, written = ClientStats(), json.loads(path.read_text())
    for name, value in written.items():
        getattr(stats, name).update(value)
    return stats


if __name__ == "__main__":
    run_program(main)
