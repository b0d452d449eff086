"""The dashboard as text, for who has no Grafana and for support tickets: `python -m deploy.grafana.ask http://prometheus:9090`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer

from deploy.grafana.panel import Panel
from deploy.grafana.panels import ROWS
from registry.commands.command_line import OneLineErrorsCommand
from registry.errors import FlexiError

Address = Annotated[str, typer.Argument(help="Of Prometheus, such as http://prometheus:9090.")]
Window = Annotated[str, typer.Option(help="What rates and quantiles are taken over; several scrapes at least.")]
Instance = Annotated[str, typer.Option(help="Regular expression of the servers' `instance`.")]
Model = Annotated[str, typer.Option(help="Regular expression of models' names; what is of no model shows only without it.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class NoAnswer(FlexiError):
    """Prometheus did not answer a query; the message is a line for people."""


@app.command(help=__doc__, cls=OneLineErrorsCommand)
def main(address: Address, window: Window = "5m", instance: Instance = ".*", model: Model = ".*") -> None:
    """Print what every panel asks and what Prometheus answers, all at one moment. Exit code 1: it does not answer."""
    with httpx.Client(base_url=address, timeout=30) as client:
        now = float(ask(client, "time()")[1])  # its clock, not ours
        place = client.base_url.copy_with(userinfo=b"")  # a password is not for tickets
        typer.echo(f"{place} at {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC, window {window}, servers {instance}")
        for row in ROWS:
            typer.echo(f"\n== {row.title} ==")
            for panel in row.panels:
                typer.echo("\n".join(["", *lines(client, panel, panel.asked(window, instance, model), now)]))


def lines(client: httpx.Client, panel: Panel, asked: dict[str, str], now: float) -> Iterator[str]:
    """The lines of a panel: title, meaning, and every query of `asked` with its answers."""
    yield f"{panel.title} [{panel.unit}]"
    yield panel.about
    for legend, expr in asked.items():
        yield f"  {expr}"
        answers = [(named(legend, sample["metric"]), float(sample["value"][1])) for sample in ask(client, expr, now)]
        yield from [f"    {name}: {value:.6g}" for name, value in sorted(answers)] or ["    (nothing)"]


def named(legend: str, labels: dict[str, str]) -> str:
    """A legend with its labels filled in, as Grafana writes it; all labels where the panel is a table."""
    text = re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend).strip()
    return text or " ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "all"


def ask(client: httpx.Client, expr: str, now: float | None = None) -> Any:
    """The result of an instant query. Raises `NoAnswer`."""
    try:
        reply = client.get("/api/v1/query", params={"query": expr} | ({} if now is None else {"time": now}))
        said = reply.json()
    except httpx.HTTPError as error:
        raise NoAnswer(f"Prometheus does not answer: {error or type(error).__name__}") from error
    except ValueError as error:
        raise NoAnswer(f"this is no Prometheus: status {reply.status_code}, and not JSON") from error
    if not isinstance(said, dict) or not isinstance(said.get("data", {}), dict) or "status" not in said:
        raise NoAnswer(f"this is no Prometheus: status {reply.status_code}, and no answer of its kind")
    if said["status"] != "success":
        raise NoAnswer(f"Prometheus refuses {expr}: {said.get('error')}")
    return said["data"]["result"]


if __name__ == "__main__":
    app()
