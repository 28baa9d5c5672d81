"""The command line: ``silotune …``.

Each file beside this one holds a group of commands and a function ``register`` that adds it. On
top such a file imports nothing that takes long; what a command needs, the command imports. So
``silotune --help`` is there at once.

Exit codes: 0 done; 1 a fault of silotune, with a trace; 2 something for the user to change, said
in words; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import click
import typer

from silotune.cli import client, data, privacy, report, server, simulate
from silotune.errors import SilotuneError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="silotune",
    help="Federated fine-tuning of a language model for merchants, private for each customer.",
    no_args_is_help=True,
    # A trace with local variables would show rows.
    pretty_exceptions_enable=False,
)

for _commands in (data, simulate, report, server, client, privacy):
    _commands.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from silotune import __version__

        typer.echo(f"silotune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Hold the options of ``silotune`` itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="silotune", standalone_mode=False)
    except SilotuneError as error:
        return _fail(str(error))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        result = 130
    except Exception as error:
        # Only now, since it imports DuckDB.
        from silotune.tables.local_work import is_interruption, is_shortage

        if is_shortage(error):
            return _fail(f"the disk or the memory is full: {error}")
        if not is_interruption(error):
            raise
        result = 130
    if result == 130:
        typer.echo("interrupted", err=True)
    return result if isinstance(result, int) else 0


def run() -> NoReturn:
    """Be the command ``silotune``: run it and end the process with its exit code."""
    code = main()
    if code == 130:
        # Python would wait for threads of Flower and Ray that wait for ever for what the
        # interruption took away. What had to be tidied up was, on the way here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
