"""make load: a service of its own, the locust profile against it, the result held to limits.json."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from loadtests.check import main as check
from server.launch import serving

HERE = Path(__file__).parent
OUT = Path(".flexi/load")


def main() -> int:
    """Run the profile and return check.py's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", default=os.environ.get("FLEXI_REGISTRY", ".flexi/registry"))
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=45)
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with serving({"FLEXI_REGISTRY": given.registry}, OUT / "server.log") as address:
        before = exported_macs(address)
        run_locust(address, given.users, given.seconds)
        exported = exported_macs(address) - before
    billed = sum(json.loads((OUT / "bill.json").read_text()).values())
    drift = (exported - billed) / billed if billed else 0.0
    result = {"tiers": read_tiers(OUT / "locust_stats.csv"), "billed_macs": billed, "macs_drift": drift}
    (OUT / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return check(OUT / "result.json", HERE / "limits.json")


def run_locust(address: str, users: int, seconds: int) -> None:
    """Drive the service; requests in flight at the end are waited for, so that every MAC is billed."""
    locust = [
        sys.executable,
        "-m",
        "locust",
        "--headless",
        "--only-summary",
        "--locustfile",
        str(HERE / "locustfile.py"),
    ]
    locust += ["--host", address, "--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"]
    locust += ["--stop-timeout", "120", "--csv", str(OUT / "locust"), "--exit-code-on-error", "0"]
    subprocess.run(locust, check=True, env={**os.environ, "LOADTEST_BILL": str(OUT / "bill.json")})


def exported_macs(address: str) -> float:
    """The sum of flexi_macs_total over all its labels."""
    text = httpx.get(f"{address}/metrics").raise_for_status().text
    return sum(float(value) for value in re.findall(r"^flexi_macs_total\{.*\} (\S+)$", text, re.MULTILINE))


def read_tiers(path: Path) -> dict[str, dict[str, Any]]:
    """Requests, failures and latencies in ms, by tier, from locust's summary."""
    with path.open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file) if row["Type"] == "POST"}
    return {
        name: {
            "requests": int(row["Request Count"]),
            "failures": int(row["Failure Count"]),
            "p50_ms": float(row["50%"]),
            "p95_ms": float(row["95%"]),
        }
        for name, row in rows.items()
    }


if __name__ == "__main__":
    sys.exit(main())
