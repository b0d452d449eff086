"""The command line of the engine, called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from engine.__main__ import app


def call(*args: str | Path) -> Any:
    """What a call gave: its exit code, and what it wrote."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args: str | Path) -> str:
    """The one line on stderr."""
    result = call(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)
