"""What every command line of this project shares: one line on stderr for whatever goes wrong, and its exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import _click as click
from typing_extensions import override

from registry.errors import FlexiError
from registry.foreign_errors import explained, one_line, printable

IMPOSSIBLE, USAGE, BUG, STOPPED, PIPE = 1, 2, 70, 130, 141  # as sysexits.h and shells have them; 128 + the signal's number
DEBUG, DEBUG_HELP = "--debug", "Show the traceback of an error above its line."
EXIT_CODES = (
    "Exit codes: 0 done; 1 not possible; 2 wrong usage; 70 a fault of the program itself. One line on stderr says why; "
    "with --debug its traceback comes first."
)
_ROOT = Path(__file__).parents[2]

if sys.stdout is None:  # `>&-`: whoever started us wants no output, and libraries look at it while they are imported
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Whatever is raised inside becomes one line on stderr and `SystemExit`; with `debug`, its traceback stands above.

    Errors of our own family, and those of files, networks, libraries and devices, end with exit code 1; a stop from the
    keyboard with 130; a reader of our output that went away (`| head`) with 141 and no line. Any other is a bug: 70.
    """
    root = logging.getLogger()
    level = root.level
    if debug:  # whoever silences a library's log asks whether this is on
        root.setLevel(logging.DEBUG)
    try:
        yield
        _flush()
    except BrokenPipeError:
        _give_up_output()
        sys.exit(PIPE)
    except KeyboardInterrupt as error:
        _end("stopped", STOPPED, error, debug)
    except FlexiError as error:
        _end(f"error: {printable(error.message)}", IMPOSSIBLE, error, debug)
    except Exception as error:
        if (said := explained(error)) is not None:
            _end(f"error: {said}", IMPOSSIBLE, error, debug)
        _end(f"error: {_bug(error)}", BUG, error, debug)
    finally:
        root.setLevel(level)


class OneLineErrors(typer.core.TyperGroup):
    """Commands whose errors are one line, those of their usage too; each of them takes `--debug`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for command in (self, *self.commands.values()):
            if command is self or not isinstance(command, OneLineErrors):  # a group of commands has it already
                command.params.append(_debug_option())

    @override
    def main(self, *arguments: Any, **options: Any) -> Any:
        return _main(self, *arguments, **options)


class OneLineErrorsCommand(typer.core.TyperCommand):
    """`OneLineErrors` of a program that is a single command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_debug_option())

    @override
    def main(self, *arguments: Any, **options: Any) -> Any:
        return _main(self, *arguments, **options)


def command_line(help: str, epilog: str = EXIT_CODES) -> typer.Typer:
    """An application of several commands under `one_line_errors`."""
    return typer.Typer(
        cls=OneLineErrors,
        rich_markup_mode="markdown",  # in which "[default: 50]" is no markup
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help=help,
        epilog=epilog,
    )


def run_command(main: Callable[..., int | None]) -> None:
    """Run a function as a program: its parameters are typer's options, its errors one line, what it returns the exit code."""
    app = typer.Typer(rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=OneLineErrorsCommand)(main)
    app()


def argument_parser(description: str | None) -> ArgumentParser:
    """A parser for `run_program`, which looks for `--debug` itself. The description's lines stay as they are."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(DEBUG, action="store_true", help=DEBUG_HELP)
    return parser


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run a function that reads its arguments itself: its errors are one line, what it returns is the exit code."""
    with one_line_errors(DEBUG in sys.argv):
        code = main()
    sys.exit(code)


def _main(command: Any, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any) -> NoReturn:
    """Typer's own `main` shows wrong usage in a box of many lines, and takes some errors of ours for the terminal's."""
    words = list(sys.argv[1:] if args is None else args)
    with one_line_errors(DEBUG in words):
        try:
            with command.make_context(prog_name or click.utils._detect_program_name(), words) as context:
                returned = command.invoke(context)
            code = returned if isinstance(returned, int) else 0
        except typer.Exit as ended:
            code = ended.exit_code
        except click.exceptions.NoArgsIsHelpError:  # the help is printed
            code = USAGE
        except click.exceptions.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context else ""
            typer.echo(f"error: {printable(error.format_message())}{hint}", err=True)
            code = error.exit_code
    sys.exit(code)


def _debug_option() -> Any:
    """The option, for help and parsing: `_main` looks for it before anything is parsed."""
    made = typer.Typer(add_completion=False)

    @made.command()
    def _command(debug: Annotated[bool, typer.Option(DEBUG, help=DEBUG_HELP, expose_value=False)] = False) -> None: ...

    return typer.main.get_command(made).params[0]


def _bug(error: Exception) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_ROOT)]
    inside = [frame for frame in ours if "site-packages" not in frame.filename]
    where = f" in {Path(inside[-1].filename).relative_to(_ROOT)}, line {inside[-1].lineno}" if inside else ""
    said = one_line(error)
    return (
        f"a fault of this program: {type(error).__name__}{f': {said}' if said else ''}{where}; "
        f"run it again with {DEBUG} and report what that shows"
    )


def _end(line: str, code: int, error: BaseException, debug: bool) -> NoReturn:
    with suppress(OSError, ValueError):  # nobody reads us any more
        if debug:
            traceback.print_exception(error)
        typer.echo(line, err=True)
    with suppress(OSError, ValueError):
        _flush()
    raise SystemExit(code) from error


def _flush() -> None:
    """Write what is buffered. Output that cannot be written is an error of now, not one of the interpreter's own end."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_output()
        raise


def _give_up_output() -> None:
    """Let the interpreter's own flush at its end have somewhere to write to."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
