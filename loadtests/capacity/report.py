"""A plan as a table, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from loadtests.capacity.plan import CapacityPlan, Promise


def table(plan: CapacityPlan, tiers: Sequence[str], title: str) -> Table:
    """A row for each number of GPUs that was tried."""
    shown = Table(title=title, title_justify="left")
    for column in ("GPUs", "at work", "rows a wave", "refused", *(f"{tier} p50, p95" for tier in tiers)):
        shown.add_column(column, justify="right")
    for gpus, outcome in plan.tried.items():
        seconds = [f"{outcome.quantile(0.5, tier):.2f}, {outcome.quantile(0.95, tier):.2f} s" for tier in tiers]
        marked = f"[bold]{gpus}[/bold]" if gpus == plan.needed else str(gpus)
        shown.add_row(marked, f"{outcome.busy:.0%}", f"{outcome.rows_a_wave:.1f}", f"{outcome.refused_share:.1%}", *seconds)
    return shown


def plot(plan: CapacityPlan, tiers: Sequence[str], promise: Promise, file: Path) -> None:
    """p95 of each tier by the number of GPUs, the promise, and the share that is refused."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    seconds = figure.subplots()
    refused = seconds.twinx()
    for tier in tiers:
        seconds.plot(list(plan.tried), [one.quantile(0.95, tier) for one in plan.tried.values()], marker="o", label=tier)
    seconds.axhline(promise.p95, color="grey", linestyle=":", label=f"promised: {promise.p95:g} s")
    refused.bar(list(plan.tried), [100 * one.refused_share for one in plan.tried.values()], color="#c33", alpha=0.25)
    refused.set_ylim(0, 100)
    refused.set_ylabel("refused, %")
    seconds.set_yscale("log")
    seconds.set_xlabel("GPUs")
    seconds.set_ylabel("95 % of the answered within, s")
    seconds.legend(loc="upper right")
    figure.savefig(file, dpi=110)
