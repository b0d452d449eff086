"""What every command line of this project shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typing_extensions import override

from registry.errors import FlexiError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of our own family become one line on stderr and exit code 1; any other is a bug, with its traceback."""
    try:
        yield
    except FlexiError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(1) from error


class OneLineErrors(typer.core.TyperGroup):
    """Commands under `one_line_errors`. An application of a single command is no group: it decorates that one."""

    @override
    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


def command_line(help: str, epilog: str | None = None) -> typer.Typer:
    """An application whose errors are one line, and whose bugs keep a plain traceback."""
    return typer.Typer(
        cls=OneLineErrors,
        rich_markup_mode="markdown",  # in which "[default: 50]" is no markup
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help=help,
        epilog=epilog,
    )
