"""`make test` where tools are missing: it fetches what it may, and says last what it skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = ROOT / "tests" / "fetch-prometheus.sh"
TOOLS = ("bash", "mktemp", "rm", "mkdir", "tail", "mv", "ls")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that is all of PATH on a machine that has next to nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    return folder


def fetch(path: Path, into: Path) -> str:
    """What the script prints; it succeeds whatever happens."""
    into.mkdir()
    done = subprocess.run([SCRIPT, into], env={"PATH": str(path)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def executable(path: Path, content: str) -> None:
    path.write_text(f"#!/bin/bash\n{content}\n")
    path.chmod(0o755)


def test_tools_that_are_there_are_not_fetched(bare: Path, tmp_path: Path) -> None:
    for name in ("prometheus", "promtool"):
        executable(bare / name, "exit 0")
    executable(bare / "apt-get", "exit 1")
    executable(bare / "dpkg-deb", "exit 1")
    assert fetch(bare, tmp_path / "into") == ""


def test_a_machine_without_debians_tools_goes_on_without(bare: Path, tmp_path: Path) -> None:
    assert fetch(bare, tmp_path / "into") == ""
    assert not list((tmp_path / "into").iterdir())


def test_they_come_out_of_debians_package(bare: Path, tmp_path: Path) -> None:
    executable(bare / "apt-get", '[ "${@: -1}" = update ] || echo a package > prometheus_1_all.deb')
    executable(bare / "dpkg-deb", "mkdir -p usr/bin; echo it > usr/bin/prometheus; echo it > usr/bin/promtool")
    assert "Fetching" in fetch(bare, tmp_path / "into")
    assert sorted(file.name for file in (tmp_path / "into").iterdir()) == ["prometheus", "promtool"]


def test_a_machine_without_a_network_says_so_and_goes_on(bare: Path, tmp_path: Path) -> None:
    executable(bare / "apt-get", "echo E: no network >&2; exit 100")
    executable(bare / "dpkg-deb", "exit 0")
    assert "That failed: E: no network" in fetch(bare, tmp_path / "into")


def test_the_last_line_says_what_was_skipped_and_how_to_have_it(tmp_path: Path) -> None:
    content = "import pytest\ndef test_it():\n    pytest.skip('x is not installed (do y)')\n"
    (tmp_path / "test_skipped.py").write_text(content + content.replace("test_it", "test_too"))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "--rootdir", tmp_path, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": ""}
    for parallel in ((), ("-n", "2")):
        done = subprocess.run([*command, *parallel], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == "skipped 2 tests: x is not installed (do y)", done.stdout + done.stderr
