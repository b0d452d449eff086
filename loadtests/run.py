"""make load: a service of its own, one locust profile against it, the result held to limits.json."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from loadtests.check import main as check
from loadtests.ledger import Ledger
from loadtests.mixes import mixes
from server.launch import serving

HERE = Path(__file__).parent
OUT = Path(".flexi/load")
LIMITS = HERE / "limits.json"


def main() -> int:
    """Run the profile and return check.py's exit code."""
    profiles = json.loads(LIMITS.read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=list(profiles), default="mixed")
    parser.add_argument("--registry", help="with the tiers draft and balanced; without it, one made for the test")
    parser.add_argument("--users", type=int)
    parser.add_argument("--seconds", type=int)
    given = parser.parse_args()
    profile, out = profiles[given.profile], OUT / given.profile
    out.mkdir(parents=True, exist_ok=True)
    if given.registry is None:
        given.registry = str(out / "registry")
        mixes()["partial"].publish(given.registry)
    with serving({"FLEXI_REGISTRY": given.registry}, out / "server.log") as address:
        before = exported_macs(address)
        run_locust(given.profile, address, given.users or profile.get("users"), given.seconds or profile.get("seconds"), out)
        wait_until_idle(address)
        exported = exported_macs(address) - before
    result = read_ledger(out / "ledger.json").result(exported)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return check(out / "result.json", LIMITS, given.profile)


def run_locust(profile: str, address: str, users: int | None, seconds: int | None, out: Path) -> None:
    """Drive the service; requests in flight at the end are waited for, so that every MAC is billed.

    Profiles with a shape of their own bring their users and their time with them.
    """
    locust = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--exit-code-on-error", "0"]
    locust += ["--locustfile", str(HERE / "profiles" / f"{profile}.py"), "--host", address, "--stop-timeout", "120"]
    if users:
        locust += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"]
    subprocess.run(locust, check=True, env={**os.environ, "LOADTEST_LEDGER": str(out / "ledger.json"), "PYTHONPATH": "."})


def read_ledger(path: Path) -> Ledger:
    """What the locust process left."""
    ledger, written = Ledger(), json.loads(path.read_text())
    for name, value in written.items():
        getattr(ledger, name).update(value)
    return ledger


def wait_until_idle(address: str, patience: float = 60.0) -> None:
    """Until nothing is in the engine: the rows of the last hang-up are dropped at its next turn."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        if sum(gauge(address, "flexi_inflight_rows") + gauge(address, "flexi_queue_rows")) == 0:
            return
        time.sleep(0.2)
    raise RuntimeError(f"rows are in the engine {patience:.0f} s after the last client left")


def exported_macs(address: str) -> float:
    """The sum of flexi_macs_total over all its labels."""
    return sum(gauge(address, "flexi_macs_total"))


def gauge(address: str, name: str) -> list[float]:
    """A metric's values, one for each set of labels."""
    text = httpx.get(f"{address}/metrics").raise_for_status().text
    return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)]


if __name__ == "__main__":
    sys.exit(main())
