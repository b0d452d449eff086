"""python -m server.experiments shadow on a registry folder: declared, looked at, reported, withdrawn."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner, Result

from registry.__main__ import app as registry_app
from registry.catalog import Catalog
from registry.schedule import Validated
from registry.stores.address import open_store
from server.experiments import events
from server.experiments.__main__ import app
from server.experiments.events import ImageFigures, PairEvent, pair_stream
from server.experiments.outbox.outbox import today

ACTIVE, CHEAPER = schedule(5), schedule()


class Shell:
    """Runs commands on one registry folder, in which the tier `balanced` means version 1."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "registry")
        self.catalog = Catalog(open_store(self.address), MODEL.name, author="ada")
        for one in (ACTIVE, CHEAPER):
            self.catalog.publish(one)
        self.catalog.promote("balanced", 1)

    def run(self, *arguments: str, code: int = 0, cli: Any = app) -> Result:
        result = CliRunner().invoke(cli, arguments, env={"FLEXI_REGISTRY": self.address, "COLUMNS": "160"})
        assert result.exit_code == code, result.output
        return result

    def shadow(self, *arguments: str, code: int = 0) -> Result:
        return self.run("shadow", *arguments, code=code)

    def saw(self, images: int, digest: str = ACTIVE.digest, harm: float = 0.5, minutes: int = 0) -> None:
        """Let a server have recorded so many pairs, one a request."""
        pairs = [
            PairEvent(
                time=datetime.now(UTC) + timedelta(minutes=minutes), request_id=f"r{i}", model=MODEL.name, tier="balanced",
                digest=digest, candidate=CHEAPER.digest, size="64x64",
                images=(
                    ImageFigures(macs=10, seconds=1.0, psnr=25),
                    ImageFigures(macs=7, seconds=0.75, psnr=25 - harm - i % 2),
                ),
            )
            for i in range(images)
        ]  # fmt: skip
        key = f"{MODEL.name}/{pair_stream('balanced')}/{today()}/{minutes:08d}-{digest[:8]}.jsonl"
        self.catalog.store.create(key, events.write(pairs))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_it_is_declared_shown_and_withdrawn_and_the_audit_trail_says_so(shell):
    said = shell.shadow("start", "balanced", "2", "--share", "0.25", "--until", "2999-01-01", "-m", "cheaper").stdout
    called = f"version 2 ({CHEAPER.digest[:8]})"
    assert said == f"{called} is the candidate of tier balanced: 25% of its images until 2999-01-01 00:00 UTC\n"
    assert "running" in shell.shadow("status").stdout
    (state,) = json.loads(shell.shadow("status", "--json").stdout)
    assert state["history"][0]["candidate"]["digest"] == CHEAPER.digest
    assert called in shell.shadow("report", "balanced").stdout
    assert shell.shadow("stop", "balanced").stdout == f"tier balanced has no candidate any more: {called} was withdrawn\n"
    assert "stopped" in shell.shadow("status").stdout
    trail = json.loads(shell.run("audit", "--json", cli=registry_app).stdout)
    assert [(entry["action"], entry["candidate"]["version"]) for entry in trail if "candidate" in entry] == [
        ("start", 2),
        ("stop", 2),
    ]
    assert "audit trail of candidates" in shell.run("audit", cli=registry_app).stdout


def test_what_is_wrong_is_one_line_that_names_the_field(shell):
    for problem, words in (
        ("error: schedule: version 1", ("start", "balanced", "1")),
        ("error: until: is over", ("start", "balanced", "2", "--until", "2001-01-01")),
        ("error: tier: tier balanced of emoji64 has no candidate", ("stop", "balanced")),
        ("error: tier: tier balanced of emoji64 never had a candidate", ("report", "balanced")),
    ):
        stderr = shell.shadow(*words, code=1).stderr
        assert stderr.startswith(problem), stderr
        assert stderr.count("\n") == 1
    wrong = shell.shadow("start", "balanced", "2", "--share", "2", code=2).stderr
    assert wrong.startswith("error: Invalid value for '--share': Input should be less than or equal to 1")


def test_the_report_has_both_schedules_figures_and_says_what_follows(shell):
    shell.shadow("start", "balanced", "2")
    shell.saw(200)
    said = shell.shadow("report", "balanced").stdout
    assert "now: version 1" in said
    assert "200 images of 200 requests, 0 failed" in said
    assert "The candidate's images are 1.00 dB further from the teacher's" in said
    assert "at 0.70 of the MACs and 0.75 of the time" in said
    page = json.loads(shell.shadow("report", "balanced", "--json").stdout)
    ((quality, macs, seconds),) = (pair["figures"] for pair in page["pairs"])
    assert (page["status"], page["meant"]["version"]) == ("running", 1)
    assert quality["effect"]["low"] < -1 < quality["effect"]["high"] < 0
    assert (macs["effect"]["estimate"], seconds["effect"]["estimate"]) == (pytest.approx(0.7), pytest.approx(0.75))


def test_too_few_requests_have_no_interval(shell):
    shell.shadow("start", "balanced", "2")
    shell.saw(10)
    said = shell.shadow("report", "balanced").stdout
    assert "10 images of 10 requests were made by both: intervals begin at 50 requests." in said


def test_after_the_tier_was_moved_earlier_pairs_are_shown_apart_and_a_promoted_candidate_says_so(shell):
    shell.shadow("start", "balanced", "2")
    shell.saw(60)
    moved = schedule(3)
    shell.catalog.publish(moved)
    shell.catalog.promote("balanced", 3)
    said = shell.shadow("report", "balanced").stdout
    assert f"earlier: {ACTIVE.digest[:8]}" in said
    assert "No image of what tier balanced means now was made again by version 2" in said
    shell.saw(60, moved.digest, harm=-2.5, minutes=1)
    said = shell.shadow("report", "balanced").stdout
    assert said.index("now: version 3") < said.index("earlier: ")
    assert "2.00 dB nearer to the teacher's" in said
    shell.catalog.promote("balanced", 2)
    said = shell.shadow("report", "balanced").stdout
    assert "promoted" in said
    assert f"Tier balanced means version 2 ({CHEAPER.digest[:8]}) now" in said


def test_other_guidance_scales_are_said(shell):
    assert shell.shadow("start", "balanced", "2").stderr == ""
    scales = {4: 3.0, 6: 5.0}
    one, other = (schedule(at, validated=Validated(sizes=((64, 64),), guidance=(scales[at],))) for at in scales)
    for published in (one, other):
        shell.catalog.publish(published)
    shell.catalog.promote("balanced", one.digest)
    shell.shadow("stop", "balanced")
    said = shell.shadow("start", "balanced", other.digest).stderr
    assert said == "note: it was validated at guidance 5, what the tier means at 3: both make what requests ask for\n"


def test_a_damaged_line_is_left_out_and_said(shell):
    shell.shadow("start", "balanced", "2")
    shell.saw(60)
    shell.catalog.store.create(f"{MODEL.name}/{pair_stream('balanced')}/{today()}/x.jsonl", b"{}\n")
    assert "left out: " in shell.shadow("report", "balanced").stdout
    assert len(json.loads(shell.shadow("report", "balanced", "--json").stdout)["damaged"]) == 1
