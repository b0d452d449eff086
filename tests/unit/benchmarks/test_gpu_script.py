"""benchmarks/gpu.sh: one run on a machine that is lent for minutes must not be spoilt by its first failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import typer
from places import ROOT

from benchmarks import start
from benchmarks.engine.__main__ import app as engine_benchmark
from engine.__main__ import app as engine
from search_jobs.__main__ import app as search_jobs

STUB = """#!/bin/sh
echo "$@" >>"$OUT/commands.txt"
case "$2" in benchmarks.engine) exit 3 ;; benchmarks.start) sleep 30 ;; esac
"""


def test_each_part_runs_whatever_became_of_the_one_before_and_says_how_it_ended(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert 'timeout --signal=INT --kill-after=20 "$seconds"' in script
    copy = tmp_path / "benchmarks" / "gpu.sh"
    copy.parent.mkdir()
    copy.write_text(script.replace('"$seconds"', "1"))
    settings = {"PYTHON": str(stub), "OUT": str(tmp_path / "out"), "MODEL": "tiny", "DEVICE": "cpu", "DTYPE": "float32"}
    done = subprocess.run(["bash", copy], env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    ends = {name: end for name, end, _ in (line.split("\t") for line in done.stdout.splitlines())}
    assert ends == {
        "model": "exit 0",
        "equality": "exit 3",
        "engine": "exit 3",
        "start": "exit 124 (its time was over)",
        "peers": "exit 0",
        "search": "exit 0",
    }
    assert (tmp_path / "out" / "parts.txt").read_text() == done.stdout
    _parsed((tmp_path / "out" / "commands.txt").read_text().splitlines())


def _parsed(lines: list[str]) -> None:
    """Each command line is one that its program understands."""
    start_program = typer.Typer()
    start_program.command()(start.main)
    programs = {
        "engine": engine,
        "benchmarks.engine": engine_benchmark,
        "benchmarks.start": start_program,
        "search_jobs": search_jobs,
    }
    seen = set()
    for _, module, *arguments in map(str.split, lines):
        if module in programs:
            command = typer.main.get_command(programs[module])
            subcommands = getattr(command, "commands", {})
            name, arguments = (arguments[0], arguments[1:]) if subcommands else (module, arguments)
            subcommands.get(name, command).make_context(name, list(arguments))
            seen.add(module)
    assert seen == programs.keys()
