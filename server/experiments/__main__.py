"""python -m server.experiments: declare an experiment, run it, and read what came of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from registry.catalog import Catalog
from registry.cli import command_line
from registry.display import minute, print_json, print_table
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.experiment import Action, Experiment, ExperimentState
from registry.experiments import Declared, Experiments
from registry.options import DEFAULT, AsJson, Model, Reason, Registry, open_catalog
from server.experiments.archive import stored
from server.experiments.report import Report, as_json, as_tables, report
from server.experiments.summary import summarise

app = command_line(
    help="A/B test schedules in production.",
    epilog="Exit codes: 0 done; 1 not possible, one line on stderr says why; 2 wrong usage. The guide is docs/experiments.md.",
)

Name = Annotated[str, typer.Argument(help="The experiment's name.")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The declaration, JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Although the stage's gate is not passed yet.")]


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
    _refuse_missing(catalog, experiment)
    state = _experiments(catalog).declare(experiment, reason)
    _refuse_missing(catalog, experiment)  # garbage collection may have come between; now that they are named it will not
    _say(state, experiment, as_json)


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
            print_json([each.state.model_dump(mode="json", exclude={"history"}) for each in found])
            return
        split = [
            (each.state.name, str(each.state.version), each.experiment.tier, each.state.status, _share(each)) for each in found
        ]
        print_table(f"{experiments.model}: experiments", ("experiment", "version", "tier", "status", "share"), split)
        return
    state = experiments.state(name)
    if as_json:
        print_json(state.model_dump(mode="json"))
        return
    rows = [
        (minute(each.time), each.action, each.status, str(each.version), f"{each.author}@{each.host}", each.reason)
        for each in state.history
    ]
    columns = ("time (UTC)", "action", "status", "version", "who", "reason")
    print_table(f"history of {name}", columns, rows)


@app.command("report")
def report_(name: Name, registry: Registry = DEFAULT, model: Model = None, json_: AsJson = False) -> None:
    """What each arm did, and what follows. Looking at it as often as you like is safe: its intervals hold at all times."""
    catalog, damaged = open_catalog(registry, model), list[str]()
    made = _report(catalog, _experiments(catalog).declared(name), damaged)
    if json_:
        print_json(as_json(made) | {"damaged": damaged})
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # in a log, 80 would break every line
    console.print(as_tables(made))
    for line in damaged:
        console.print(f"left out: {line}", style="red", markup=False)


def _refuse_missing(catalog: Catalog, experiment: Experiment) -> None:
    for arm in experiment.arms:
        try:
            catalog.schedule(arm.digest)
        except NotFound as error:
            raise NotFound(f"arms: {arm.name}: {error.message}", param="arms") from error


def _act(registry: str, model: str | None, name: str, action: Action, reason: str, as_json: bool) -> None:
    experiments = _experiments(open_catalog(registry, model))
    state = experiments.act(name, action, reason)
    _say(state, experiments.experiment(name, state.version), as_json)


def _gate(catalog: Catalog, declared: Declared) -> str | None:
    """What the stage still waits for."""
    since = declared.state.history[-1].time
    units = min(summary.units for summary in _report(catalog, declared, []).summaries)
    minutes = (datetime.now(UTC) - since).total_seconds() / 60
    return declared.experiment.ramp[declared.state.stage].missing(minutes, units)


def _report(catalog: Catalog, declared: Declared, damaged: list[str]) -> Report:
    experiment = declared.experiment
    events = stored(catalog.store, catalog.model, experiment.name, damaged)
    return report(experiment, summarise(experiment, events), datetime.now(UTC))


def _experiments(catalog: Catalog) -> Experiments:
    return Experiments(catalog.store, catalog.model)


def _share(declared: Declared) -> str:
    return f"{declared.experiment.ramp[declared.state.stage].share:g} %" if declared.state.status == "running" else "-"


def _say(state: ExperimentState, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        print_json(state.model_dump(mode="json", exclude={"history"}))
        return
    share = _share(Declared(experiment, state))
    typer.echo(f"{state.name} version {state.version} is {state.status}" + (f", share {share}" if share != "-" else ""))


if __name__ == "__main__":
    app(prog_name="python -m server.experiments")
