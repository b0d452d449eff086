"""python -m loadtests.fleet: what a fleet asks of what it shares, counted; the tables of docs/scale.md.

What is counted does not depend on the machine. The two columns in seconds and bytes do: of `report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtests.capacity.cluster import Balancer, Load, simulate
from loadtests.capacity.curves import read_curves
from loadtests.capacity.images import TierPlan
from loadtests.fleet import audit as auditing
from loadtests.fleet import polling as registry_polling
from loadtests.fleet import recording
from loadtests.fleet import series as metric_series
from loadtests.mixes import MODEL, TIERS, WEIGHTS, mixes
from registry.commands.command_line import command_line
from registry.experiments.catalog import ExperimentCatalog
from registry.stores.folder import FolderStore

app = command_line(help=__doc__ or "")
VIEWS: tuple[tuple[Balancer, float], ...] = (
    ("random", 0), ("round-robin", 0), ("two-choices", 0), ("two-choices", 5), ("least-queue", 0), ("least-queue", 5),
)  # fmt: skip


Above = Annotated[float, typer.Option(min=0.01, max=1e6)]
Gpus = Annotated[list[int], typer.Option(min=1, max=10_000, help="Repeat for several.")]
Counts = Annotated[list[int], typer.Option(min=0, max=1_000_000, help="Repeat for several.")]
Rates = Annotated[list[float], typer.Option(min=0.001, max=1_000, help="Repeat for several.")]
Numbers = Annotated[list[int], typer.Option(min=1, max=100_000_000, help="Repeat for several.")]
Moves = Annotated[list[int], typer.Option(min=20, max=1_000_000, help="Repeat for several.")]
Models = Annotated[list[int], typer.Option(min=1, max=16, help="Repeat for several.")]


@app.command()
def balancers(gpus: Gpus = [1, 10, 100, 1000], rate: Above = 8.0, seconds: Above = 40.0) -> None:  # noqa: B006
    """The same load for each GPU, by how many there are and how requests find theirs. rate: requests a second for a GPU."""
    curves, mix = read_curves("captured"), dict(zip(TIERS, map(float, WEIGHTS), strict=True))
    plans = {tier: TierPlan.of(tier, one, curves.macs) for tier, one in mixes()["partial"].schedules.items()}
    with _table(
        f"{rate:g} a second and GPU, {seconds:g} s", "GPUs", "balancer", "view", "at work", "refused", "p50", "p95"
    ) as table:
        for count in gpus:
            for balancer, seen in VIEWS if count > 1 else VIEWS[:1]:
                load = Load(rate * count, mix, round(rate * count * seconds))
                found = simulate(curves.card, plans, load, count, balancer, seen=seen)
                times = [f"{found.quantile(share):.2f} s" for share in (0.5, 0.95)]
                view = "any" if balancer in ("random", "round-robin") else f"{seen:g} s old" if seen else "present"
                table.add_row(str(count), balancer, view, f"{found.busy:.0%}", f"{found.refused_share:.1%}", *times)
                Console().print(count, balancer, view, *times)


@app.command()
def polling(over: Counts = [0, 20, 200], jobs: Counts = [0, 1000, 10000]) -> None:  # noqa: B006
    """Requests of one look of one worker. over: experiments that have ended; jobs: that wait."""
    with _table("one look", "over", "jobs", "for tiers", "for experiments", "for candidates", "for jobs") as table:
        for ended, waiting in zip(over, jobs, strict=True):
            with TemporaryDirectory() as folder:
                found = registry_polling.looks(Path(folder), ended, waiting)
            table.add_row(str(ended), str(waiting), *map(_requests, found.values()))


@app.command()
def events(rates: Rates = [0.1, 1.0, 10.0]) -> None:  # noqa: B006
    """One worker's hour. rates: events a second."""
    with _table("one worker's hour", "events/s", "requests", "MB sent", "objects", "MB kept") as table:
        for rate in rates:
            with TemporaryDirectory() as folder:
                found = recording.an_hour(Path(folder), rate)
            table.add_row(f"{rate:g}", _requests(found.requests), _mb(found.sent), str(found.objects), _mb(found.kept))


@app.command()
def report(counts: Numbers = [10_000, 100_000, 1_000_000]) -> None:  # noqa: B006
    """What `python -m server.experiments report` takes. counts: events of the experiment."""
    with _table("a report", "events", "CPU seconds", "MB of memory") as table:
        for count in counts:
            with TemporaryDirectory() as folder:
                experiments = ExperimentCatalog(FolderStore(Path(folder)), MODEL.name)
                experiments.declare(registry_polling.declaration("experiment-0", ["0" * 64, "1" * 64]))
                experiments.act("experiment-0", "start")
                found = recording.a_report(experiments, "experiment-0", count)
            table.add_row(f"{count:,}", f"{found.seconds:.1f}", _mb(found.grown))


@app.command()
def audit(counts: Moves = [100, 1_000, 10_000]) -> None:  # noqa: B006
    """counts: moves of a tier."""
    with _table("moves of a tier", "moves", "alias, kB", "next move", "whole audit", "newest twenty") as table:
        for count in counts:
            with TemporaryDirectory() as folder:
                found = auditing.moves(Path(folder), count)
            table.add_row(f"{count:,}", f"{found.alias / 1e3:.0f}", *map(_requests, found[1:]))


@app.command()
def series(models: Models = [1, 2], tiers: Models = [2, 6]) -> None:  # noqa: B006
    """What /metrics of a worker lists, once every tier of every model has answered."""
    with _table("time series of a worker", "models", "tiers of each", "series") as table:
        for count in models:
            for of_each in tiers:
                with TemporaryDirectory() as folder:
                    table.add_row(str(count), str(of_each), str(metric_series.exported(Path(folder), count, of_each)))


@contextmanager
def _table(title: str, *columns: str) -> Iterator[Table]:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    yield table
    Console().print(table)


def _requests(requests: Counter[str]) -> str:
    return ", ".join(f"{count:,} {method}" for method, count in sorted(requests.items())) or "none"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


if __name__ == "__main__":
    app()
