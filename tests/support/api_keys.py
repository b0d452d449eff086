"""API keys, made and revoked as an operator does it."""

from __future__ import annotations

from typer.testing import CliRunner

from server.access.__main__ import app


def keys(*arguments: object) -> str:
    """What `python -m server.access` prints."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output.strip()
