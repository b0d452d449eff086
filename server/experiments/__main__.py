"""python -m server.experiments: declare an experiment, run it, and read what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.address import open_catalog
from registry.catalog import Catalog
from registry.cli import command_line
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.experiment import Action, Experiment, ExperimentState
from registry.experiments import Declared, Experiments
from server.experiments.report import Report, print_report, report

app = command_line(
    help="A/B test schedules in production.",
    epilog="Exit codes: 0 done; 1 not possible, one line on stderr says why; 2 wrong usage. The guide is docs/experiments.md.",
)

Registry = Annotated[str, typer.Option("--registry", envvar="FLEXI_REGISTRY", help="A folder or s3://bucket/prefix.")]
Model = Annotated[str | None, typer.Option("--model", help="The model's name; needed where the registry has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why: it stays in the experiment's history.")]
Name = Annotated[str, typer.Argument(help="The experiment's name.")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The declaration, JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Although the stage's gate is not passed yet.")]
DEFAULT = ".flexi/registry"


@app.command()
def declare(
    file: File, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Keep a declaration; no traffic is split before `start`. A change of it is the next version."""
    catalog = open_catalog(registry, model)
    try:
        experiment = Experiment.parse(file.read_bytes())
    except FlexiError as error:
        raise type(error)(f"{file}: {error.message}", param=error.param) from error
    for arm in experiment.arms:
        try:
            catalog.schedule(arm.digest)
        except NotFound as error:
            raise NotFound(f"arms: {arm.name}: {error.message}", param="arms") from error
    _say(_experiments(catalog).declare(experiment, reason), experiment, as_json)


@app.command()
def start(name: Name, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """Begin to split the first stage's share of the tier's traffic, or go on after a pause."""
    _act(registry, model, name, "start", reason, as_json)


@app.command()
def ramp(
    name: Name,
    registry: Registry = DEFAULT,
    model: Model = None,
    reason: Reason = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Go to the next stage's share, if this stage's gate is passed and no conclusion is blocked."""
    catalog = open_catalog(registry, model)
    declared = _experiments(catalog).declared(name)
    if not force and (missing := _gate(catalog, declared)):
        raise InvalidInput(f"the gate is not passed: {missing}; --force goes on all the same", param="ramp")
    _act(registry, model, name, "ramp", reason, as_json)


@app.command()
def pause(name: Name, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let the tier's own schedule serve everybody for now; `start` goes on."""
    _act(registry, model, name, "pause", reason, as_json)


@app.command()
def stop(name: Name, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """End it. Its events stay; `report` still answers."""
    _act(registry, model, name, "stop", reason, as_json)


@app.command()
def kill(name: Name, registry: Registry = DEFAULT, model: Model = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """End it because of harm: every server follows within its watch interval, without a restart."""
    _act(registry, model, name, "kill", reason, as_json)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One experiment, with its history; without it, all.")] = None,
    registry: Registry = DEFAULT,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """What runs, and who did what when."""
    experiments = _experiments(open_catalog(registry, model))
    if name is None:
        found = [experiments.declared(each) for each in experiments.names()]
        if as_json:
            _print_json([each.state.model_dump(mode="json", exclude={"history"}) for each in found])
            return
        rows: list[tuple[str, ...]] = [
            (each.state.name, str(each.state.version), each.experiment.tier, each.state.status, _share(each)) for each in found
        ]
        _print_table(f"{experiments.model}: experiments", ("experiment", "version", "tier", "status", "share"), rows)
        return
    state = experiments.state(name)
    if as_json:
        _print_json(state.model_dump(mode="json"))
        return
    rows = [
        (_minute(each.time), each.action, each.status, str(each.version), f"{each.author}@{each.host}", each.reason)
        for each in state.history
    ]
    columns = ("time (UTC)", "action", "status", "version", "who", "reason")
    _print_table(f"history of {name}", columns, rows)


@app.command("report")
def report_(name: Name, registry: Registry = DEFAULT, model: Model = None, as_json: AsJson = False) -> None:
    """What each arm did, and what follows. Looking at it as often as you like is safe: its intervals hold at all times."""
    catalog = open_catalog(registry, model)
    made = _report(catalog, _experiments(catalog).declared(name))
    if as_json:
        _print_json(made.as_json())
    else:
        print_report(made, Console(highlight=False))


def _act(registry: str, model: str | None, name: str, action: Action, reason: str, as_json: bool) -> None:
    experiments = _experiments(open_catalog(registry, model))
    state = experiments.act(name, action, reason)
    _say(state, experiments.experiment(name, state.version), as_json)


def _gate(catalog: Catalog, declared: Declared) -> str | None:
    """What the stage still waits for."""
    since = declared.state.history[-1].time
    made = _report(catalog, declared)
    minutes = (datetime.now(UTC) - since).total_seconds() / 60
    return declared.experiment.ramp[declared.state.stage].missing(minutes, made.smallest_arm)


def _report(catalog: Catalog, declared: Declared) -> Report:
    return report(catalog.store, catalog.model, declared.experiment, declared.state, datetime.now(UTC))


def _experiments(catalog: Catalog) -> Experiments:
    return Experiments(catalog.store, catalog.model)


def _share(declared: Declared) -> str:
    return f"{declared.experiment.ramp[declared.state.stage].share:g} %" if declared.state.status == "running" else "-"


def _say(state: ExperimentState, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        _print_json(state.model_dump(mode="json", exclude={"history"}))
        return
    share = _share(Declared(experiment, state))
    typer.echo(f"{state.name} version {state.version} is {state.status}" + (f", share {share}" if share != "-" else ""))


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in ("reason", "who"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    app(prog_name="python -m server.experiments")
