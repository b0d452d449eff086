"""python -m registry, as people and scripts use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner, Result

from registry.__main__ import app
from registry.schedule import Schedule

ROOT = Path(__file__).parents[2]
FIDELITY = {"rfid": 0.914, "psnr": 21.26, "images": 1024}
CHEAP = schedule(cost={"macs": 5, "rows": 2, "relative": 0.1})
MIDDLE = schedule(5, cost={"macs": 9, "rows": 2, "relative": 0.134}, fidelity=FIDELITY, provenance={"job": "[red]7"})
COMMANDS = ["list", "show", "publish", "promote", "rollback", "history"]


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
        "5/5/40",
        "5/0/45",
        "0.134",
        "0.91",
        "21.3",
        MIDDLE.digest[:8],
        CHEAP.digest[:8],
        "a [bold]front",
    ):
        assert word in text
    found = shell.json("list")
    assert found["model"] == "emoji64"
    assert [(tier["tier"], tier["version"], tier["digest"]) for tier in found["tiers"]] == [("fast", 2, MIDDLE.digest)]
    first, second = found["versions"]
    assert (first["number"], first["fidelity"], first["steps"]) == (1, None, {"full": 5, "partial": 0, "null": 45})
    assert (second["cost"]["relative"], second["fidelity"]["rfid"], second["author"]) == (0.134, 0.914, "ada")
    assert [version["number"] for version in shell.json("list", "--last", "1")["versions"]] == [2]


@pytest.mark.parametrize("ref", ["fast", "2", MIDDLE.digest, MIDDLE.digest[:8]])
def test_show_draws_the_steps(shell: Shell, ref: str) -> None:
    text = shell.run("show", ref).stdout
    assert text.splitlines()[0] == "F....p...." * 5
    for word in ("full 5", "partial 5", "null 40", MIDDLE.digest, "dpmsolver++", "0.134", "0.914", "[red]7"):
        assert word in text
    found = shell.json("show", ref)
    assert Schedule.parse(json.dumps(found["schedule"])) == MIDDLE
    assert found["digest"] == MIDDLE.digest
    assert found["steps"] == MIDDLE.counts()


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
    assert f"{bad}: solver.name" in empty.fails("publish", empty.file(CHEAP, "a.json"), str(bad))
    bad.write_text('{"format": 9}')
    assert f"{bad}: format" in empty.fails("publish", empty.file(CHEAP, "a.json"), str(bad))
    assert not (empty.folder / "registry").exists()


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


def test_the_model_is_asked_for_only_where_there_are_several(shell: Shell) -> None:
    other = MIDDLE.model_copy(update={"model": MODEL.model_copy(update={"name": "sd15"})})
    shell.run("publish", shell.file(other, "c.json"))
    assert "--model: emoji64, sd15" in shell.fails("list")
    assert shell.json("list", "--model", "sd15")["versions"][0]["digest"] == other.digest
    assert "model.name" in shell.fails("publish", shell.file(other, "c.json"), "--model", "emoji64")


def test_errors_are_one_line(shell: Shell, empty: Shell) -> None:
    assert "no tier slow" in shell.fails("show", "slow")
    assert "no version 7" in shell.fails("promote", "fast", "7")
    assert "all full" in shell.fails("promote", "reference", "1")
    assert "no tier best" in shell.fails("history", "best")
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
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "error: emoji64 has no tier slow\n")


def test_it_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "diffusers", "transformers", "bentoml", "boto3"]
    code = f"import sys, registry.__main__; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
