"""``silotune report``: the table and the HTML report of a run, made again from its folder."""

from pathlib import Path
from typing import Annotated

import typer

from silotune.errors import ConfigError

__all__ = ["register"]

# Parts of the extra 'simulation'.
_EXTRA = ("jinja2", "markupsafe", "matplotlib", "tensorboard")


def register(root: typer.Typer) -> None:
    """Add the command to ``root``."""
    root.command("report")(_report)


def _report(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    show: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
) -> None:
    """Write report.html again from what a run recorded, and print its table.

    RUN: folder of a run of `silotune simulate`, finished or not.
    """
    from rich.console import Console

    try:
        from simulations.report import write_report
        from simulations.run_folder import RunFolder
        from simulations.summary import print_summary
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"'{error.name}' is not installed. Reports need: pip install 'silotune[simulation]'."
        ) from error

    folder = RunFolder.open(run)
    path = write_report(folder)
    print_summary(folder, Console())
    typer.echo(f"\n{path}")
    if show:
        typer.launch(str(path.resolve()))
