"""What every command line of this project shares."""

from __future__ import annotations

from typing import Any

import typer
from typing_extensions import override

from registry.errors import FlexiError


class OneLineErrors(typer.core.TyperGroup):
    """Errors of our own family become one line on stderr and exit code 1; any other is a bug, with its traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FlexiError as error:
            typer.echo(f"error: {error.message}", err=True)
            raise typer.Exit(1) from error


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
