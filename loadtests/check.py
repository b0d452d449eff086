"""Hold a load test's result to the limits in a file. Exit code 1, and one line per limit broken, when it does not hold.

Times are only compared with each other (a tier's p95 with the teacher's median in the same run): bare times say more about
the machine than about the service.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def check(result: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """The limits that are broken, each as a sentence. `result` is what `loadtests.run` writes."""
    broken = []
    tiers: dict[str, dict[str, float]] = result["tiers"]
    requests = sum(tier["requests"] for tier in tiers.values())
    if requests < limits["min_requests"]:
        broken.append(f"only {requests:.0f} requests were made, the limit is at least {limits['min_requests']}")
    share = sum(tier["failures"] for tier in tiers.values()) / max(requests, 1)
    if share > limits["max_error_share"]:
        broken.append(f"error share {share:.3f} is over {limits['max_error_share']}")
    reference = tiers.get("reference")
    for tier, most in limits["max_p95_over_reference_p50"].items():
        if tier in tiers and reference and reference["requests"]:
            ratio = tiers[tier]["p95_ms"] / reference["p50_ms"]
            if ratio > most:
                broken.append(f"p95 of {tier} is {ratio:.2f} of the teacher's median, the limit is {most}")
    if abs(result["macs_drift"]) > limits["max_macs_drift"]:
        broken.append(
            f"billed and exported MACs differ by {result['macs_drift']:+.2%}, the limit is {limits['max_macs_drift']:.2%}"
        )
    return broken


def main(result: Path, limits: Path) -> int:
    """Print the verdict and return the exit code."""
    broken = check(json.loads(result.read_text()), json.loads(limits.read_text()))
    for line in broken:
        print(f"BROKEN: {line}")
    print("the load test is within its limits" if not broken else f"{len(broken)} limits broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
