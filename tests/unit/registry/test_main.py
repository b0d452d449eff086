"""python -m registry, as people and scripts use it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner, Result

from registry.__main__ import app
from registry.schedule import Schedule, teacher

FIDELITY = {"rfid": 0.914, "psnr": 21.26, "images": 1024}
CHEAP = schedule(cost={"macs": 5, "rows": 2, "relative": 0.1})
MIDDLE = schedule(5, cost={"macs": 9, "rows": 2, "relative": 0.134}, fidelity=FIDELITY, provenance={"job": "[red]7"})
COMMANDS = ["list", "show", "publish", "promote", "rollback", "history", "diff", "audit", "verify", "gc", "export", "import"]


class Shell:
    """Runs commands on one registry folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "FLEXI_REGISTRY": str(folder / "registry"),
            "COLUMNS": "120",
            "USER": "ada",
            "LOGNAME": "ada",
        }

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments, env=self.environment)
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def fails(self, *arguments: str) -> str:
        """The one line on stderr."""
        result = self.run(*arguments, code=1)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    def file(self, one: Schedule, name: str) -> str:
        path = self.folder / name
        path.write_bytes(one.document())
        return str(path)


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def shell(empty: Shell) -> Shell:
    """With two versions, and the tier `fast` at the second."""
    empty.run("publish", empty.file(CHEAP, "a.json"), empty.file(MIDDLE, "b.json"), "--note", "a [bold]front")
    empty.run("promote", "fast", "1", "-m", "try")
    empty.run("promote", "fast", MIDDLE.digest[:8], "--reason", "better")
    return empty


def test_list_shows_tiers_and_versions(shell: Shell) -> None:
    text = shell.run("list").stdout
    for word in (
        "fast",
        "10 (5+5)",
        "5 (5+0)",
        "0.134",
        "0.91",
        "21.3",
        MIDDLE.digest[:8],
        CHEAP.digest[:8],
        "a [bold]front",
    ):
        assert word in text
    shown = shell.json("list")
    assert shown["model"] == "emoji64"
    assert [(tier["tier"], tier["version"], tier["digest"]) for tier in shown["tiers"]] == [("fast", 2, MIDDLE.digest)]
    first, second = shown["versions"]
    assert (first["number"], first["fidelity"], first["steps"]) == (1, None, {"full": 5, "partial": 0, "null": 45})
    assert (second["cost"]["relative"], second["fidelity"]["rfid"], second["author"]) == (0.134, 0.914, "ada")
    assert [version["number"] for version in shell.json("list", "--last", "1")["versions"]] == [2]


def test_list_counts_computed_steps_out_of_the_teachers(empty: Shell) -> None:
    """Also of a schedule whose own trajectory has another length: what matters is what the teacher would take."""
    shorter = schedule(2, steps=48, count=4)
    reference = teacher(MIDDLE.model, MIDDLE.solver)
    empty.run("publish", *(empty.file(one, f"{one.digest}.json") for one in (MIDDLE, shorter, reference)))
    assert "10 (5+5)" in empty.run("list").stdout, "nobody has said yet which schedule is the teacher"
    empty.run("promote", "reference", reference.digest)
    text = empty.run("list").stdout
    for words in ("10 of 50 (5+5)", "8 of 50 (4+4)", "50 of 50 (50+0)"):
        assert words in text


def test_a_name_that_no_tier_has_makes_a_new_tier_and_says_so(shell: Shell) -> None:
    assert "(new tier; before it: fast)" in shell.run("promote", "fsat", "1").stdout
    assert "new tier" not in shell.run("promote", "fsat", "2").stdout
    assert "new tier" not in shell.run("promote", "fast", "1").stdout
    assert shell.json("promote", "fast", "2")["tier"] == "fast"


@pytest.mark.parametrize("ref", ["fast", "2", MIDDLE.digest, MIDDLE.digest[:8]])
def test_show_draws_the_steps(shell: Shell, ref: str) -> None:
    text = shell.run("show", ref).stdout
    assert text.splitlines()[0] == "F....p...." * 5
    for word in ("full 5", "partial 5", "null 40", MIDDLE.digest, "dpmsolver++", "0.134", "0.914", "[red]7"):
        assert word in text
    assert "10 of 50 steps are computed" in text
    shown = shell.json("show", ref)
    assert Schedule.parse(json.dumps(shown["schedule"])) == MIDDLE
    assert shown["digest"] == MIDDLE.digest
    assert shown["steps"] == MIDDLE.counts()


def test_show_colours_the_strip_in_a_terminal(shell: Shell) -> None:
    shell.environment |= {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[30;42mF\x1b[0m" in shell.run("show", "fast").stdout


def test_publish_reports_versions_and_is_idempotent(empty: Shell) -> None:
    files = [empty.file(CHEAP, "a.json"), empty.file(MIDDLE, "b.json")]
    first = empty.json("publish", *files, "-m", "note")
    assert [(version["number"], version["digest"], version["note"]) for version in first] == [
        (1, CHEAP.digest, "note"),
        (2, MIDDLE.digest, "note"),
    ]
    assert empty.json("publish", *files) == first
    assert "version 2" in empty.run("publish", files[1]).stdout


def test_publish_checks_all_files_first(empty: Shell) -> None:
    bad = empty.folder / "bad.json"
    bad.write_text(CHEAP.document().decode().replace("dpmsolver++", "heun"))
    assert f"(in {bad})" in empty.fails("publish", empty.file(CHEAP, "a.json"), str(bad))
    bad.write_text('{"format": 9}')
    assert f"(in {bad})" in empty.fails("publish", empty.file(CHEAP, "a.json"), str(bad))
    assert not (empty.folder / "registry").exists()


def test_publish_for_a_model_refuses_schedules_of_another_before_any_is_published(empty: Shell) -> None:
    other = CHEAP.model_copy(update={"model": MODEL.model_copy(update={"name": "other"})})
    files = [empty.file(MIDDLE, "a.json"), empty.file(other, "b.json")]
    assert f"model.name: {files[1]} is for other, not emoji64" in empty.fails("publish", *files, "--model", "emoji64")
    assert not (empty.folder / "registry").exists()


def test_import_leaves_tiers_that_must_be_guarded_to_two_persons(shell: Shell) -> None:
    bundle, there = str(shell.folder / "guarded.tar"), str(shell.folder / "guarded")
    shell.run("export", bundle)
    shell.environment["FLEXI_APPROVED_TIERS"] = "fast"
    assert "tier fast: not promoted, it takes a second person" in shell.run("import", bundle, "--registry", there).stdout
    assert shell.json("list", "--registry", there, "--model", "emoji64")["tiers"] == []


def test_rollback_and_history(shell: Shell) -> None:
    assert "fast means version 1" in shell.run("rollback", "fast", "-m", "worse [after all]").stdout
    history = shell.json("history", "fast")
    assert [(entry["version"], entry["reason"]) for entry in history] == [
        (1, "try"),
        (2, "better"),
        (1, "worse [after all]"),
    ]
    assert "worse [after all]" in shell.run("history", "fast").stdout
    assert shell.json("promote", "best", "fast")["version"] == 1


def test_history_of_the_last_moves(shell: Shell) -> None:
    assert [entry["version"] for entry in shell.json("history", "fast", "--last", "1")] == [2]


def test_diff_marks_the_steps_that_differ(shell: Shell) -> None:
    lines = shell.run("diff", "1", "fast").stdout.splitlines()
    assert lines[:3] == ["1     " + "F........." * 5, "fast  " + "F....p...." * 5, "      " + ("     ^    " * 5).rstrip()]
    text = "\n".join(lines)
    for words in ("segment 4, steps 40 to 49: no partial step → partial at 5, branch 3", "+0.034 (+34.0%)", "0.914"):
        assert words in text
    (computed,) = (line.split() for line in lines if line.lstrip().startswith("computed"))
    assert computed == ["computed", "steps", "5", "10", "+5", "(+100.0%)"]
    assert "null" not in text
    difference = shell.json("diff", "1", "fast")
    assert (difference["a"]["digest"], difference["b"]["digest"]) == (CHEAP.digest, MIDDLE.digest)
    assert difference["steps"] == [5, 15, 25, 35, 45]
    assert difference["segments"][0]["b"] == {"partial": [5], "branch": 3}
    assert difference["figures"]["relative cost"] == [0.1, 0.134]
    assert "the same schedule" in shell.run("diff", "2", "fast").stdout


def test_diff_of_other_solvers_tells_the_fields(shell: Shell) -> None:
    other = MIDDLE.model_copy(update={"solver": MIDDLE.solver.model_copy(update={"name": "ddim"})})
    shell.run("publish", shell.file(other, "c.json"))
    assert "solver.name dpmsolver++ → ddim" in shell.run("diff", "2", "3").stdout
    assert shell.json("diff", "2", "3")["fields"] == {"solver.name": ["dpmsolver++", "ddim"]}


def test_audit_tells_who_moved_what_from_where_and_why(shell: Shell) -> None:
    shell.run("rollback", "fast", "-m", "worse [after all]")
    shell.run("promote", "best", "2")
    text = shell.run("audit").stdout
    for words in ("2 → 1", "rollback", "ada", socket.gethostname(), "worse [after all]", "- → 2"):
        assert words in text
    moves = shell.json("audit", "--tier", "fast")
    assert [(entry["action"], entry["after"]["version"], entry["host"]) for entry in moves] == [
        ("promote", 1, socket.gethostname()),
        ("promote", 2, socket.gethostname()),
        ("rollback", 1, socket.gethostname()),
    ]
    assert shell.json("audit", "--since", "2999-01-01") == []
    assert len(shell.json("audit", "--since", "2020-01-01T12:00")) == 4
    shell.run("audit", "--since", "yesterday", code=2)
    assert "tier slow: is not in" in shell.fails("audit", "--tier", "slow")


def test_verify_reports_damage_with_exit_code_1(shell: Shell) -> None:
    assert "no damage" in shell.run("verify").stdout
    assert shell.json("verify")["damaged"] == 0
    key = f"emoji64/schedules/{MIDDLE.digest}.json"
    (shell.folder / "registry" / key).write_bytes(CHEAP.document())
    (shell.folder / "registry/emoji64/README").write_text("?")
    lines = shell.run("verify", code=1).stdout.splitlines()
    assert lines[0].startswith(f"DAMAGED  {key}: ")
    assert lines[1].startswith("note     emoji64/README: ")
    assert lines[2].endswith("damaged in 1 places")
    verdict = json.loads(shell.run("verify", "--json", code=1).stdout)
    assert [(finding["key"], finding["damage"]) for finding in verdict["findings"]] == [("emoji64/README", False), (key, True)]


def test_list_shows_the_others_where_one_is_gone_or_damaged(shell: Shell) -> None:
    (shell.folder / f"registry/emoji64/schedules/{CHEAP.digest}.json").write_bytes(MIDDLE.document())
    assert "damaged" in shell.run("list").stdout
    (shell.folder / f"registry/emoji64/schedules/{CHEAP.digest}.json").unlink()
    assert "gone" in shell.run("list").stdout
    first, second = shell.json("list")["versions"]
    assert (first["steps"], first["state"], second["steps"]) == (None, "gone", MIDDLE.counts())


def test_gc_tells_before_it_removes(shell: Shell) -> None:
    third = shell.file(schedule(7), "c.json")
    shell.run("publish", third)
    assert shell.json("gc") == {"model": "emoji64", "dry_run": False, "removed": []}
    looked = shell.json("gc", "--dry-run", "--days", "0")
    assert [(schedule["digest"], schedule["versions"]) for schedule in looked["removed"]] == [(schedule(7).digest, [3])]
    assert "would be removed: 1" in shell.run("gc", "--dry-run", "--days", "0").stdout
    assert "were removed: 1" in shell.run("gc", "--days", "0").stdout
    assert "removed by garbage collection" in shell.fails("show", "3")
    assert "version 4" in shell.run("publish", third).stdout
    shell.run("gc", "--days", "-1", code=2)


def test_export_and_import(shell: Shell) -> None:
    bundle, there = str(shell.folder / "b.tar.gz"), str(shell.folder / "other")
    assert "2 schedules of emoji64, tiers: fast" in shell.run("export", bundle).stdout
    lines = shell.run("import", bundle, "--registry", there).stdout.splitlines()
    assert lines[1:] == [f"schedule {MIDDLE.digest[:8]}: published: version 2", "tier fast: promoted: version 2"]
    done = shell.json("import", bundle, "--registry", there)["done"]
    assert [item["outcome"] for item in done][2] == "there already: left at version 2"
    assert shell.json("show", "fast", "--registry", there)["digest"] == MIDDLE.digest
    assert "exists already" in shell.fails("export", bundle)
    assert shell.json("export", str(shell.folder / "c.tar"), "1")["schedules"] == [CHEAP.digest]
    (shell.folder / "bad.tar").write_bytes(b"no tar")
    assert "cannot be read as a tar file" in shell.fails("import", str(shell.folder / "bad.tar"), "--registry", there)


def test_the_model_is_asked_for_only_where_there_are_several(shell: Shell) -> None:
    other = MIDDLE.model_copy(update={"model": MODEL.model_copy(update={"name": "sd15"})})
    shell.run("publish", shell.file(other, "c.json"))
    assert "--model: emoji64, sd15" in shell.fails("list")
    assert shell.json("list", "--model", "sd15")["versions"][0]["digest"] == other.digest
    assert "model.name" in shell.fails("publish", shell.file(other, "c.json"), "--model", "emoji64")


def test_errors_are_one_line(shell: Shell, empty: Shell) -> None:
    assert "tier slow: is not in" in shell.fails("show", "slow")
    assert "version 7: is not in" in shell.fails("promote", "fast", "7")
    assert "all full" in shell.fails("promote", "reference", "1")
    assert "tier best: is not in" in shell.fails("history", "best")
    assert "s3://bucket/prefix" in shell.fails("list", "--registry", "gs://bucket")
    (shell.folder / f"registry/emoji64/schedules/{MIDDLE.digest}.json").write_bytes(CHEAP.document())
    assert "was changed after it was published" in shell.fails("show", "fast")


def test_an_empty_registry_says_so(empty: Shell) -> None:
    for arguments in (["list"], ["show", "fast"], ["promote", "fast", "1"]):
        assert "publish a schedule first" in empty.fails(*arguments)


def test_wrong_usage_is_code_2(empty: Shell) -> None:
    for arguments in (["promote", "fast"], ["fly"], ["publish", "no-such-file.json"], ["list", "--last", "0"]):
        empty.run(*arguments, code=2)


def test_help_tells_the_exit_codes_and_every_command() -> None:
    text = Shell(ROOT).run("--help").stdout
    assert "Exit codes" in text
    for command in COMMANDS:
        assert command in text
        assert "FLEXI_REGISTRY" in Shell(ROOT).run(command, "--help").stdout


def test_as_a_program(shell: Shell) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "registry", *arguments]
        return subprocess.run(command, cwd=ROOT, env=os.environ | shell.environment, capture_output=True, text=True)

    done = run("show", "fast", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["version"] == 2
    failed = run("show", "slow")
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "error: tier slow: is not in emoji64\n")


def test_it_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "diffusers", "transformers", "bentoml", "boto3"]
    code = f"import sys, registry.__main__; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
