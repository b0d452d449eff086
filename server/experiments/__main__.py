"""python -m server.experiments: declare an experiment, run it, and read what came of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from registry.catalog import Catalog
from registry.commands.command_line import EXIT_CODES, command_line
from registry.commands.display import console, minute, print_json, print_table
from registry.commands.options import AsJson, Model, Reason, Registry, open_catalog
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.experiments.catalog import DeclaredExperiment, ExperimentCatalog
from registry.experiments.declaration import Action, Experiment, ExperimentState
from registry.stores.address import DEFAULT_ADDRESS
from registry.tiers import REFERENCE
from server.experiments import shadow_commands
from server.experiments.analysis.archive import stored_events
from server.experiments.analysis.gate import missing
from server.experiments.analysis.report import Report, as_json, as_tables, report
from server.experiments.analysis.summary import summarise
from server.experiments.auto_ramp import step

app = command_line(
    help="A/B test schedules in production.",
    epilog=f"{EXIT_CODES} The guide is docs/experiments.md.",
)

Name = Annotated[str, typer.Argument(help="The experiment's name.")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The declaration, JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although a check refuses; without this, its refusal says why.")]

Auto = Annotated[bool, typer.Option("--auto", help="Raise, wait, pause, roll back or finish, as the report calls for.")]
Promote = Annotated[bool, typer.Option("--promote", help="With --auto: what ships at the last stage becomes the tier.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --auto: say what would be done, with its exit code.")]


@app.command()
def declare(
    file: File, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Keep a declaration; no traffic is split before `start`. A change of it is the next version."""
    catalog = open_catalog(registry, model)
    try:
        experiment = Experiment.parse(file.read_bytes())
    except FlexiError as error:
        raise type(error)(f"{error.text} (in {file})", param=error.param) from error
    _refuse_unfit(catalog, experiment)
    state = _experiments(catalog).declare(experiment, reason)
    _refuse_missing(catalog, experiment)  # garbage collection may have come between; now that they are named it will not
    _say(state, experiment, as_json)


@app.command()
def start(
    name: Name,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    reason: Reason = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Begin to split the first stage's share of the tier's traffic, or go on after a pause."""
    catalog = open_catalog(registry, model)
    declared = _experiments(catalog).declared(name)
    if not force:
        _refuse_unfit(catalog, declared.experiment)
        _refuse_other_control(catalog, declared.experiment)
    _act(catalog, name, "start", reason, as_json, declared.state)


@app.command()
def ramp(
    name: Name,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    reason: Reason = "",
    force: Force = False,
    auto: Auto = False,
    promote: Promote = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Go to the next stage's share, if this stage's gate is passed and no conclusion is blocked.

    With --auto, for cron or a CI job: do what the report calls for, once. Exit codes: 0 advanced or finished well; 10 waiting;
    11 paused, or over without a winner: a person is needed; 12 rolled back.
    """
    catalog = open_catalog(registry, model)
    if auto and not force:
        return _auto(catalog, name, promote, dry_run, as_json)
    if auto or promote or dry_run:
        raise InvalidInput("--promote and --dry-run need --auto, and --auto is never forced", param="auto")
    declared = _experiments(catalog).declared(name)
    if not force:
        page = _report(catalog, declared.experiment, declared.state, [])
        if waits_for := missing(declared, page, datetime.now(UTC)):
            raise InvalidInput(f"the gate is not passed: {waits_for}; --force goes on all the same", param="ramp")
    _act(catalog, name, "ramp", reason, as_json, declared.state)
    return 0


@app.command()
def pause(
    name: Name, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Let the tier's own schedule serve everybody for now; `start` goes on."""
    _act(open_catalog(registry, model), name, "pause", reason, as_json)


@app.command()
def stop(
    name: Name, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """End it. Its events stay; `report` still answers."""
    _act(open_catalog(registry, model), name, "stop", reason, as_json)


@app.command()
def kill(
    name: Name, registry: Registry = DEFAULT_ADDRESS, model: Model = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """End it because of harm: every server follows within its watch interval, without a restart."""
    _act(open_catalog(registry, model), name, "kill", reason, as_json)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One experiment, with its history; without it, all.")] = None,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """What runs, and who did what when."""
    experiments = _experiments(open_catalog(registry, model))
    if name is None:
        _show_all(experiments, as_json)
    else:
        _show_history(experiments.state(name), as_json)


@app.command("report")
def report_(
    name: Name,
    registry: Registry = DEFAULT_ADDRESS,
    model: Model = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="An earlier one.")] = None,
    json_: AsJson = False,
) -> None:
    """What each arm did, and what follows. Looking at it as often as you like is safe: its intervals hold at all times."""
    catalog, damaged = open_catalog(registry, model), list[str]()
    experiments = _experiments(catalog)
    state = experiments.state(name)
    page = _report(catalog, experiments.experiment(name, version or state.version), state, damaged)
    if json_:
        print_json(as_json(page) | {"damaged": damaged})
        return
    screen = console()
    screen.print(as_tables(page))
    for line in damaged:
        screen.print(f"left out: {line}", style="red", markup=False)


def _show_all(experiments: ExperimentCatalog, as_json: bool) -> None:
    declared = list(experiments.all())
    if as_json:
        print_json([state.model_dump(mode="json", exclude={"history"}) for _, state in declared])
        return
    lines = [(one.state.name, str(one.state.version), one.experiment.tier, one.state.status, _share(one)) for one in declared]
    print_table(f"{experiments.model}: experiments", ("experiment", "version", "tier", "status", "share"), lines)


def _show_history(state: ExperimentState, as_json: bool) -> None:
    if as_json:
        print_json(state.model_dump(mode="json"))
        return
    lines = [
        (minute(entry.time), entry.action, entry.status, str(entry.version), f"{entry.author}@{entry.host}", entry.reason)
        for entry in state.history
    ]
    print_table(f"history of {state.name}", ("time (UTC)", "action", "status", "version", "who", "reason"), lines)


def _refuse_missing(catalog: Catalog, experiment: Experiment) -> None:
    for arm in experiment.arms:
        try:
            catalog.schedule(arm.digest)
        except NotFound as error:
            raise NotFound(f"{arm.name}: {error.message}", param="arms") from error


def _refuse_unfit(catalog: Catalog, experiment: Experiment) -> None:
    """What no declaration can know by itself: its schedules and its tier are there, and control's fidelity means something."""
    _refuse_missing(catalog, experiment)
    tiers = {*catalog.tiers(), REFERENCE}
    if experiment.tier not in tiers:
        raise NotFound(f"{catalog.model} has no tier {experiment.tier}, only {', '.join(sorted(tiers))}", param="tier")
    watched = {experiment.primary.metric, *(guardrail.metric for guardrail in experiment.guardrails)}
    if "psnr" in watched and REFERENCE in catalog.tiers() and catalog.alias(REFERENCE).digest == _control(experiment):
        raise InvalidInput(
            "control is the teacher's own schedule, and an image has no distance to itself; leave psnr out", param="psnr"
        )


def _refuse_other_control(catalog: Catalog, experiment: Experiment) -> None:
    """Whoever is not enrolled, and everybody after a rollback, gets what the tier means."""
    meant = catalog.alias(experiment.tier).digest if experiment.tier in catalog.tiers() else None
    if meant and meant != _control(experiment):
        raise InvalidInput(
            f"it is {_control(experiment)[:12]}, but tier {experiment.tier} means {meant[:12]} now; declare a version "
            "whose control is that, promote the other, or --force",
            param="control",
        )


def _control(experiment: Experiment) -> str:
    return next(arm.digest for arm in experiment.arms if arm.name == experiment.control)


def _act(catalog: Catalog, name: str, action: Action, reason: str, as_json: bool, seen: ExperimentState | None = None) -> None:
    """With `seen`, only from its version and stage: of two who ramp at once, one is refused."""
    experiments = _experiments(catalog)
    version, stage = (seen.version, seen.stage) if seen else (None, None)  # nothing keeps an operator from ending it
    state = experiments.act(name, action, reason, version=version, stage=stage)
    _say(state, experiments.experiment(name, state.version), as_json)


def _auto(catalog: Catalog, name: str, promote: bool, dry_run: bool, as_json: bool) -> int:
    damaged, now = list[str](), datetime.now(UTC)
    done = step(catalog, name, lambda one: _report(catalog, *one, damaged), now, promote=promote, dry_run=dry_run)
    if as_json:
        print_json(done.as_json(dry_run) | {"damaged": damaged})
    else:
        typer.echo(("would be: " if dry_run else "") + done.line)
    return done.exit_code


def _report(catalog: Catalog, experiment: Experiment, state: ExperimentState, damaged: list[str]) -> Report:
    """The report on a version: the state's own or an earlier one. Adds to `damaged` what could not be read."""
    events = stored_events(catalog.store, catalog.model, state, experiment.version, damaged)
    return report(experiment, summarise(experiment, events), datetime.now(UTC))


def _experiments(catalog: Catalog) -> ExperimentCatalog:
    return ExperimentCatalog(catalog.store, catalog.model)


def _share(declared: DeclaredExperiment) -> str:
    return f"{declared.experiment.ramp[declared.state.stage].share:g} %" if declared.state.status == "running" else "-"


def _say(state: ExperimentState, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        print_json(state.model_dump(mode="json", exclude={"history"}))
        return
    share = _share(DeclaredExperiment(experiment, state))
    typer.echo(f"{state.name} version {state.version} is {state.status}" + (f", share {share}" if share != "-" else ""))


app.add_typer(shadow_commands.app, name="shadow")

if __name__ == "__main__":
    app(prog_name="python -m server.experiments")
