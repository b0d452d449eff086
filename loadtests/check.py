"""Hold a load test's result to the limits of its profile. Exit code 1, and a line for each limit broken, when it does not hold.

Times are only compared with each other, in one run: bare times say more about the machine than about the service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry.commands.command_line import run_command


def check(result: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """The limits that are broken, each as a sentence. `result` is what `loadtests.client_stats` gives."""
    return [*_shares(result, limits), *_times(result["names"], limits), *_macs(result, limits), *_arms(result["units"], limits)]


def _shares(result: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    kinds = ("answered", "failed", "refused", "abandoned")
    counts = {kind: sum(figures[kind] for figures in result["names"].values()) for kind in kinds}
    requests = sum(counts.values())
    if counts["answered"] < limits["min_answered"]:
        yield f"only {counts['answered']} requests were answered, the limit is at least {limits['min_answered']}"
    for kind, limit in (("failed", "max_error_share"), ("refused", "max_refused_share")):
        share = counts[kind] / max(requests, 1)
        if share > limits[limit]:
            yield f"{kind}: a share of {share:.3f} of all requests, the limit is {limits[limit]}"
    if result["fairness"] < limits["min_fairness"]:
        yield f"fairness between users is {result['fairness']:.3f}, the limit is at least {limits['min_fairness']}"


def _times(names: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    for name, most in limits["max_p95_over_p50"].items():
        own, _, other = name.partition(" / ")
        for needed in (own, other or own):
            if not names.get(needed, {}).get("answered"):
                yield f"p95 of {name}: {needed} was never answered"
                break
        else:
            ratio = names[own]["p95_ms"] / names[other or own]["p50_ms"]
            if ratio > most:
                yield f"p95 of {own} is {ratio:.2f} of the median of {other or own}, the limit is {most}"


def _macs(result: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    """Without hang-ups both are the same number; what hang-ups add is at most what they would have cost."""
    unbilled, most = result["exported_macs"] - result["billed_macs"], limits["max_unbilled_share"] * result["abandoned_macs"]
    if not 0 <= unbilled <= most:
        yield (
            f"{unbilled:+.0f} MACs were exported and not billed, the limits are 0 and {most:.0f} "
            f"({limits['max_unbilled_share']} of the abandoned requests' work)"
        )


def _arms(units: dict[str, int], limits: dict[str, Any]) -> Iterator[str]:
    """The arms that were declared, and no other, have as many units each as their weights and chance allow."""
    weights: dict[str, int] = limits.get("arms", {})
    if units.keys() != weights.keys():
        yield f"units were in the arms {sorted(units)}, declared are {sorted(weights)}"
    elif weights:
        from scipy.stats import chisquare

        per_weight = sum(units.values()) / sum(weights.values())
        p = chisquare([units[arm] for arm in weights], [per_weight * weight for weight in weights.values()]).pvalue
        if p < limits["min_arms_p"]:
            yield f"units by arm {dict(units)}, weights {weights}: p is {p:.1e}, the limit is {limits['min_arms_p']}"


def main(result: Path, limits: Path, profile: str) -> int:
    """Print the verdict and return the exit code."""
    broken = check(json.loads(result.read_text()), json.loads(limits.read_text())[profile])
    for line in broken:
        print(f"BROKEN: {line}")
    print(f"the profile {profile} is within its limits" if not broken else f"{len(broken)} limits broken")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main)
