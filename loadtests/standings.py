"""How the peers stand: rates and latencies of each, and the goals that ours is held to. Pure: numbers in, lines out."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests.clients import Tally
from loadtests.fluid import FluidLimit
from loadtests.mixes import TIERS

# What a card allows on which a call is bound by its arithmetic from two rows on: larger calls make nobody much faster, so the
# goals are to be behind nobody once calls are full, and that the cheapest tier does not wait for the others.
MIN_RATE = 1.0  # times anybody else's, where all clients' rows fill a call
MAX_CHEAPEST = 0.65  # of anybody else's p50 of the cheapest tier, as its images are 0.64 of the mean one's work
MIN_FLUID = 0.9  # of the fluid limit
MAX_SLOWDOWN = 1.3  # p95 of `reference` over its fair share
MAX_ALONE = {"draft": 1.1, "balanced": 1.1, "reference": 1.05}  # one client's p50 over its share of the compiled pipeline's


def standings(tallies: Mapping[str, Tally], fluid: FluidLimit) -> list[dict[str, Any]]:
    """Every server that was asked already, at the number of clients of this limit."""
    ours = tallies["ours"].rate
    return [standing(name, tally, ours, fluid) for name, tally in tallies.items() if tally.seconds]


def standing(name: str, tally: Tally, ours: float, fluid: FluidLimit) -> dict[str, Any]:
    """One server at the number of clients of this limit; `ours` is our rate. Milliseconds."""
    slowest = _percentile(tally.latencies["reference"], 95)
    return {
        "server": name,
        "clients": fluid.clients,
        "fills_a_call": fluid.fills_a_call,
        "requests": tally.requests,
        "errors": tally.errors,
        "rate": tally.rate,
        "ours_over_it": ours / tally.rate if ours and tally.rate else None,
        "of_fluid": tally.rate / fluid.rate(tally) if tally.requests else None,
        "reference_slowdown": slowest / 1000 / fluid.fair_seconds("reference") if slowest else None,
        "p50_ms": {tier: _percentile(tally.latencies[tier], 50) for tier in TIERS},
        "p95_ms": {tier: _percentile(tally.latencies[tier], 95) for tier in TIERS},
    }


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal at each number of clients: what was wanted, what was measured, whether it is kept."""
    judged = []
    for ours in (row for row in rows if row["server"] == "ours"):
        clients, cheapest = ours["clients"], TIERS[0]
        for other in (row for row in rows if row["server"] != "ours" and row["clients"] == clients):
            mine, its, name = ours["p50_ms"][cheapest], other["p50_ms"][cheapest], other["server"]
            if ours["fills_a_call"]:
                judged.append(_goal(clients, f"requests/s over those of {name}", other["ours_over_it"], least=MIN_RATE))
            what, ratio = f"p50 of {cheapest} over that of {name}", mine / its if mine and its else None
            judged.append(_goal(clients, what, ratio, most=MAX_CHEAPEST))
        judged += [
            _goal(clients, "of the fluid limit", ours["of_fluid"], least=MIN_FLUID),
            _goal(clients, "p95 of reference over its fair share", ours["reference_slowdown"], most=MAX_SLOWDOWN),
        ]
    return judged


def device_goals(rows: list[dict[str, Any]], steps: Mapping[str, Mapping[int, int]]) -> list[dict[str, Any]]:
    """The goals of a real card: of the fluid limit where calls are full, and the latency of one client beside `naive`.

    steps: how many an image of each tier takes, by branch; `naive` runs only tiers whose steps are all full.
    """
    judged = []
    for ours in (row for row in rows if row["server"] == "ours"):
        clients = ours["clients"]
        if ours["fills_a_call"]:
            judged.append(_goal(clients, "of the fluid limit", ours["of_fluid"], least=MIN_FLUID))
        for naive in (row for row in rows if row["server"] == "naive" and row["clients"] == clients == 1):
            whole = naive["p50_ms"]["reference"]
            for tier in TIERS:
                share = sum(steps[tier].values()) / sum(steps["reference"].values())
                mine = ours["p50_ms"][tier]
                what = f"p50 of {tier} over {share:g} of the compiled pipeline's reference"
                judged.append(_goal(clients, what, mine / (whole * share) if mine and whole else None, most=MAX_ALONE[tier]))
    return judged


def faults(rows: list[dict[str, Any]], absent: Mapping[str, str]) -> list[dict[str, Any]]:
    """Goals at each number of clients: no errors, and nobody absent, whose name is given with the reason.

    Who fails half of its requests has less to do, and flatters the other.
    """
    errors: Counter[int] = Counter()
    for row in rows:
        errors[row["clients"]] += row["errors"]
    judged = [_goal(clients, "errors of all servers", count, most=0) for clients, count in errors.items()]
    for name, reason in absent.items():
        judged += [_goal(clients, f"of {name}, which did not start: {reason}", None, least=1) for clients in errors]
    return judged


def table(result: dict[str, Any]) -> str:
    """The standings and the goals of one mix, as text for a terminal and peers.txt."""
    console = Console(width=150, record=True, file=io.StringIO())
    title = f"{result['device']}\nmix {result['mix']}; at most {result['max_rows']} UNet rows in a call"
    columns = ("clients", "server", "req/s", "errors", "ours is", "of fluid", *(f"{tier} p50 / p95 ms" for tier in TIERS))
    shown = Table(*columns, title=title, title_justify="left")
    for row in result["rows"]:
        times = (f"{_show(row['p50_ms'][tier], '.0f')} / {_show(row['p95_ms'][tier], '.0f')}" for tier in TIERS)
        ratios = (f"{_show(row['ours_over_it'], '.2f')}×", _show(row["of_fluid"], ".3f"))
        shown.add_row(str(row["clients"]), row["server"], f"{row['rate']:.2f}", str(row["errors"]), *ratios, *times)
    console.print(shown)
    for goal in result["goals"]:
        wanted = f"at least {goal['least']}" if goal["least"] is not None else f"at most {goal['most']}"
        verdict = "kept  " if goal["kept"] else "MISSED"
        console.print(f"{verdict} {goal['clients']:3} clients: {_show(goal['found'], '.3f')} {goal['what']} ({wanted})")
    return console.export_text().rstrip()


def _goal(
    clients: int, what: str, measured: float | None, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    kept = measured is not None and (least is None or measured >= least) and (most is None or measured <= most)
    return {"clients": clients, "what": what, "found": measured, "least": least, "most": most, "kept": kept}


def _percentile(seconds: list[float], share: float) -> float | None:
    return 1000 * float(np.percentile(seconds, share)) if seconds else None


def _show(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)
