"""python -m server.experiments on a registry folder: what it refuses, and what a second person at the same time does."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from experiment_shell import NAME, SCHEDULES, Shell
from experiments import DECLARATION, outcome
from places import ROOT
from schedule_strategies import MODEL, schedule

from registry.__main__ import app as registry_app
from registry.errors import Conflict
from registry.schedule import teacher


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tier": "balancd"}, "tier: emoji64 has no tier balancd, only balanced, reference"),
        ({"end": "2020-01-01T00:00:00Z"}, "end: fewer-full-steps ends at 2020-01-01"),
        ({"arms": [{"name": n, "digest": d * 64, "weight": 1} for n, d in (("control", "a"), ("x", "b"))]}, "arms: control"),
    ],
)
def test_what_can_never_work_is_refused_before_it_is_kept(shell: Shell, changes: dict[str, Any], said: str) -> None:
    assert said in shell.fails("declare", shell.file(**changes))
    assert shell.experiments.names() == []


def test_control_must_be_what_the_tier_means(shell: Shell) -> None:
    shell.run("declare", shell.file(control="cheaper"))
    assert "control: it is" in shell.fails("start", NAME)
    shell.run("start", NAME, "--force")
    assert shell.experiments.state(NAME).status == "running"


def test_the_distance_of_the_teacher_to_itself_is_no_guardrail(shell: Shell) -> None:
    own = teacher(MODEL, SCHEDULES["control"].solver)
    shell.catalog.publish(own)
    shell.catalog.promote("reference", own.digest)
    arms = [
        {"name": "control", "digest": own.digest, "weight": 1},
        DECLARATION["arms"][1] | {"digest": SCHEDULES["cheaper"].digest},
    ]
    rails = [{"metric": "psnr", "compare": "difference", "limit": 3.0}]
    file = shell.file(guardrails=rails, arms=arms, tier="reference")
    assert "psnr: control is the teacher's own" in shell.fails("declare", file)


def test_a_ramp_waits_for_its_gate_and_force_does_not(shell: Shell) -> None:
    shell.running(ramp=[{"share": 1, "units": 100}, {"share": 5}, {"share": 50}])
    assert "0 of 100 units in the smallest arm; --force" in shell.fails("ramp", NAME)
    shell.run("ramp", NAME, "--force")
    assert shell.experiments.state(NAME).stage == 1
    shell.run("ramp", NAME)
    assert shell.experiments.state(NAME).stage == 2


def test_a_ramp_does_not_go_on_against_the_report(shell: Shell) -> None:
    rails = [{"metric": "errors", "compare": "difference", "limit": 0.05}]
    shell.running(ramp=[{"share": 1}, {"share": 5}], guardrails=rails)
    shell.saw({"control": 300, "cheaper": 100})
    assert "sample_ratio_mismatch" in shell.fails("ramp", NAME)
    shell.run("ramp", NAME, "--force")


def test_a_ramp_does_not_go_on_with_harm(shell: Shell) -> None:
    rails = [{"metric": "errors", "compare": "difference", "limit": 0.05}]
    shell.running(ramp=[{"share": 1}, {"share": 5}], guardrails=rails)
    shell.saw({"control": 300})
    shell.keep([outcome(1000 + i, "cheaper", 1000 + i, outcome="generation_failed") for i in range(300)])
    assert "limit of errors" in shell.fails("ramp", NAME)


def test_a_ramp_counts_the_units_of_the_smallest_arm(shell: Shell) -> None:
    shell.running(ramp=[{"share": 1, "units": 100}, {"share": 5}])
    shell.saw({"control": 130, "cheaper": 95})
    assert "95 of 100 units" in shell.fails("ramp", NAME)


def test_a_ramp_does_not_go_on_with_harm_while_another_arm_collects(shell: Shell) -> None:
    third = schedule(4)
    shell.catalog.publish(third)
    digests = {name: one.digest for name, one in SCHEDULES.items()} | {"harmful": third.digest}
    shell.running(
        ramp=[{"share": 1}, {"share": 5}],
        arms=[{"name": name, "digest": digest, "weight": 1} for name, digest in digests.items()],
        guardrails=[{"metric": "errors", "compare": "difference", "limit": 0.05}],
        minimum_units=5000,
    )
    shell.saw({"control": 300, "cheaper": 300})
    shell.keep([outcome(1000 + i, "harmful", 1000 + i, outcome="generation_failed") for i in range(300)])
    assert json.loads(shell.run("report", NAME, "--json").stdout)["verdict"]["outcome"] == "collecting"
    assert "harmful is worse than control by more than the limit of errors" in shell.fails("ramp", NAME)


def test_of_two_who_ramp_at_once_one_is_refused(shell: Shell) -> None:
    shell.running(ramp=[{"share": 1}, {"share": 5}, {"share": 50}])
    seen = shell.experiments.state(NAME)
    shell.run("ramp", NAME)
    with pytest.raises(Conflict, match="stage 2 of its ramp, not 1"):
        shell.experiments.act(NAME, "ramp", version=seen.version, stage=seen.stage)
    assert shell.experiments.state(NAME).stage == 1


def test_an_earlier_versions_report_can_still_be_read(shell: Shell) -> None:
    shell.running()
    shell.saw({"control": 3, "cheaper": 3})
    shell.run("stop", NAME)
    shell.run("declare", shell.file(version=2))
    assert [arm["units"] for arm in json.loads(shell.run("report", NAME, "--json").stdout)["arms"]] == [0, 0]
    first = json.loads(shell.run("report", NAME, "--version", "1", "--json").stdout)
    assert (first["version"], [arm["units"] for arm in first["arms"]]) == (1, [3, 3])
    assert "no version 3" in shell.fails("report", NAME, "--version", "3")


def test_a_declaration_that_was_cut_off_hides_no_other(shell: Shell) -> None:
    shell.running()
    shell.catalog.store.create(f"{MODEL.name}/experiments/half/000001.json", b"{}")
    assert [state["name"] for state in json.loads(shell.run("status", "--json").stdout)] == [NAME]


def test_the_registrys_audit_tells_what_was_done_with_experiments(shell: Shell) -> None:
    shell.running()
    shell.experiments.act(NAME, "roll_back", "harm was seen", evidence={"metric": "errors", "seen": 0.5})
    trail = json.loads(shell.run("audit", "--json", cli=registry_app).stdout)
    assert [entry["action"] for entry in trail] == ["promote", "declare", "start", "roll_back"]
    assert (trail[-1]["experiment"], trail[-1]["evidence"]["seen"]) == (NAME, 0.5)
    assert "harm was seen" in shell.run("audit", cli=registry_app).stdout
    assert "roll_back" not in shell.run("audit", "--tier", "balanced", cli=registry_app).stdout
    later = datetime(2999, 1, 1, tzinfo=UTC)
    assert json.loads(shell.run("audit", "--since", f"{later:%Y-%m-%d}", "--json", cli=registry_app).stdout) == []


def test_it_starts_without_torch() -> None:
    check = "import sys, server.experiments.__main__; sys.exit(any(m in sys.modules for m in ('torch', 'scipy')))"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=120)
