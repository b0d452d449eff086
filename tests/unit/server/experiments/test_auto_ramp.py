"""`ramp --auto` on a registry folder: what it does of itself, once, whoever else does it too, and what its exit codes are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_shell import NAME, SCHEDULES, Shell
from experiments import experiment, outcome

from registry.document import canonical
from registry.experiments.automatic_ramp import AutomaticRamp
from registry.experiments.catalog import DeclaredExperiment
from server.experiments.analysis.archive import stored_events
from server.experiments.analysis.report import Report, report
from server.experiments.analysis.summary import summarise
from server.experiments.auto_ramp import AutomaticStep, step

RAMP = [{"share": 1}, {"share": 5}, {"share": 50}]
WAITING, PAUSED, ROLLED_BACK = 10, 11, 12


class Service:
    """Serves requests of units never seen before: the candidate takes `ratio` times as long, with a variation of 0.3."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.dice, self.served = shell, np.random.default_rng(5), 0

    def serve(self, units: int, ratio: float = 1.0, version: int = 1, **of_candidate: Any) -> None:
        events = []
        for _ in range(units):
            for arm, factor, fields in (("control", 1.0, {}), ("cheaper", ratio, of_candidate)):
                seconds = float(factor * self.dice.lognormal(0, 0.3))
                events.append(outcome(self.served, arm, self.served, version=version, **{"service_seconds": seconds} | fields))
                self.served += 1
        self.shell.keep(list(events))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def service(shell: Shell) -> Service:
    return Service(shell)


def auto(shell: Shell, *options: str, code: int = 0) -> dict[str, Any]:
    said = json.loads(shell.run("ramp", NAME, "--auto", "--json", *options, code=code).stdout)
    assert said["exit_code"] == code
    return dict(said)


def test_a_share_is_raised_once_harm_is_excluded_and_once_for_what_was_seen(shell: Shell, service: Service) -> None:
    shell.running(ramp=RAMP)
    assert auto(shell, code=WAITING)["reason"].startswith("0 of 200 units with ")
    service.serve(400, 0.9)
    assert (auto(shell)["stage"], auto(shell, code=WAITING)["stage"]) == (1, 1)
    assert "no new unit at this stage" in auto(shell, code=WAITING)["reason"]
    service.serve(1)
    assert auto(shell)["stage"] == 2
    ramps = [entry for entry in shell.experiments.state(NAME).history if entry.action == "ramp"]
    assert [entry.evidence["units"] for entry in ramps if entry.evidence] == [
        {"control": 400, "cheaper": 400},
        {"control": 401, "cheaper": 401},
    ]


def test_a_stage_that_may_still_do_harm_is_waited_for(shell: Shell, service: Service) -> None:
    """The interval must exclude the margin that the declaration names; another margin is excluded by the same numbers."""
    shell.running(ramp=RAMP, automatic={"harm_margin": 0.001})
    service.serve(400, 1.0)
    assert "may be worse than the harm margin of 0.001" in auto(shell, code=WAITING)["reason"]
    shell.run("stop", NAME)
    shell.run("declare", shell.file(version=2, ramp=RAMP, automatic={"harm_margin": 0.3}))
    shell.run("start", NAME)
    service.serve(400, 1.0, version=2)
    assert auto(shell)["outcome"] == "advanced"


def test_what_stays_inconclusive_is_paused_and_says_so_each_time(shell: Shell, service: Service) -> None:
    shell.running(ramp=RAMP, automatic={"harm_margin": 0.001, "patience_minutes": 1e-6})
    service.serve(300)
    assert "inconclusive after" in auto(shell, code=PAUSED)["reason"]
    history = shell.experiments.state(NAME).history
    assert "is paused" in auto(shell, code=PAUSED)["reason"]
    assert shell.experiments.state(NAME).history == history
    shell.run("start", NAME)
    assert shell.experiments.state(NAME).status == "running"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"ratio": 1.5}, "cheaper is worse than the harm margin of 0.1 in service_seconds"),
        ({"ratio": 1.0, "outcome": "generation_failed"}, "limit of errors"),
    ],
    ids=["primary", "guardrail"],
)
def test_harm_rolls_back_with_its_evidence(shell: Shell, service: Service, harm: dict[str, Any], said: str) -> None:
    rails = [{"metric": "errors", "compare": "difference", "limit": 0.05}]
    shell.running(ramp=RAMP, guardrails=rails, minimum_units=5000)
    service.serve(300, **harm)
    done = auto(shell, code=ROLLED_BACK)
    assert said in done["reason"]
    assert done["status"] == "rolled_back"
    history = shell.experiments.state(NAME).history
    assert history[-1].evidence is not None
    assert history[-1].evidence["units"] == {"control": 300, "cheaper": 300}
    auto(shell, code=ROLLED_BACK)
    assert shell.experiments.state(NAME).history == history
    assert shell.catalog.alias("balanced").digest == SCHEDULES["control"].digest


def test_a_candidate_that_is_surely_worse_by_less_than_the_margin_is_rolled_back_too(shell: Shell, service: Service) -> None:
    shell.running(ramp=RAMP, automatic={"harm_margin": 0.9})
    service.serve(800, 1.2)
    assert "control is better" in auto(shell, code=ROLLED_BACK)["reason"]


def test_a_guardrail_that_sees_nothing_keeps_the_share_where_it_is(shell: Shell, service: Service) -> None:
    shell.running(ramp=RAMP, guardrails=[{"metric": "psnr", "compare": "difference", "limit": 3.0}])
    service.serve(400, 0.8)
    assert "not yet surely within the limit of psnr" in auto(shell, code=WAITING)["reason"]


def test_a_mismatch_pauses(shell: Shell) -> None:
    shell.running(ramp=RAMP)
    shell.saw({"control": 300, "cheaper": 100})
    assert "do not follow the weights" in auto(shell, code=PAUSED)["reason"]


def test_a_dry_run_says_it_and_does_nothing(shell: Shell, service: Service) -> None:
    shell.running(ramp=RAMP)
    service.serve(300, 2.0)
    before = shell.experiments.state(NAME)
    assert auto(shell, "--dry-run", code=ROLLED_BACK)["status"] == "running"
    assert "would be: fewer-full-steps version 1 rolled_back" in shell.run("ramp", NAME, "--auto", "--dry-run", code=12).stdout
    assert shell.experiments.state(NAME) == before


def finished(shell: Shell, service: Service, *options: str) -> dict[str, Any]:
    shell.running(ramp=[{"share": 50}])
    service.serve(800, 0.7)
    return auto(shell, *options)


def test_what_ships_becomes_the_tier_only_where_that_is_asked_for(shell: Shell, service: Service) -> None:
    done = finished(shell, service)
    assert (done["outcome"], done["arm"]) == ("finished", "cheaper")
    assert shell.catalog.alias("balanced").digest == SCHEDULES["control"].digest
    assert "finished without --promote" in auto(shell, "--promote")["promotion"]


def test_a_promotion_is_made_once_and_never_against_who_rolled_it_back(shell: Shell, service: Service) -> None:
    assert "tier balanced means cheaper now" in finished(shell, service, "--promote")["promotion"]
    alias = shell.catalog.alias("balanced")
    assert (alias.digest, alias.moves) == (SCHEDULES["cheaper"].digest, 2)
    assert "Ship cheaper" in alias.history[-1].reason
    auto(shell, "--promote")
    shell.catalog.rollback("balanced", "not liked")
    assert "was moved since" in auto(shell, "--promote")["promotion"]
    assert shell.catalog.alias("balanced").digest == SCHEDULES["control"].digest


def test_a_promotion_that_was_cut_off_is_made_up(shell: Shell, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as cut:
        cut.setattr("registry.catalog.Catalog.promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        shell.running(ramp=[{"share": 50}])
        service.serve(800, 0.7)
        shell.run("ramp", NAME, "--auto", "--promote", code=130)
    assert shell.experiments.state(NAME).status == "finished"
    assert shell.catalog.alias("balanced").moves == 1
    auto(shell, "--promote")
    assert shell.catalog.alias("balanced").digest == SCHEDULES["cheaper"].digest


def test_nothing_is_promoted_where_the_tier_means_something_else_than_control(shell: Shell, service: Service) -> None:
    shell.running(ramp=[{"share": 50}])
    service.serve(800, 0.7)
    shell.catalog.promote("balanced", SCHEDULES["cheaper"].digest, "in between")
    assert "does not mean control any more" in auto(shell, "--promote", code=PAUSED)["reason"]


def test_of_two_at_once_one_acts_and_the_other_says_so(shell: Shell, service: Service) -> None:
    """The other one comes between this one's look and its step."""
    shell.running(ramp=RAMP)
    service.serve(400, 0.9)

    def look(declared: DeclaredExperiment) -> Report:
        events = stored_events(shell.catalog.store, shell.catalog.model, declared.state, 1, [])
        return report(declared.experiment, summarise(declared.experiment, events), datetime.now(UTC))

    steps: list[AutomaticStep] = []

    def raced(declared: DeclaredExperiment) -> Report:
        steps.append(step(shell.catalog, NAME, look, datetime.now(UTC)))
        return look(declared)

    steps.append(step(shell.catalog, NAME, raced, datetime.now(UTC)))
    assert [one.decision.outcome for one in steps] == ["advanced", "waiting"]
    assert "by somebody else" in steps[1].decision.reason
    assert shell.experiments.state(NAME).stage == 1


def test_options_that_say_nothing_without_auto_are_refused(shell: Shell) -> None:
    shell.running()
    for words in (["--promote"], ["--dry-run"], ["--auto", "--force"]):
        assert "auto: " in shell.fails("ramp", NAME, *words)


def test_a_declaration_that_does_not_speak_of_it_is_the_document_it_always_was() -> None:
    plain = experiment()
    assert b"automatic" not in canonical(plain.model_dump(mode="json"))
    assert plain.harm_margin == 0.1
    named = experiment(automatic={"harm_margin": 0.2})
    assert canonical(named.model_dump(mode="json")).count(b"automatic") == 1
    assert named.automatic == AutomaticRamp(harm_margin=0.2)
