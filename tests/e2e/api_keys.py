"""API keys, made and revoked as an operator does it."""

from __future__ import annotations

from typer.testing import CliRunner

from server.keys import app


def keys(*arguments: object) -> str:
    """What `python -m server.keys` prints."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output.strip()
