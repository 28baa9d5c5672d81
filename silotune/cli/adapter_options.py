"""Options of the commands that look at a silo with an adapter, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AdapterOption", "JobOption", "LocalOption", "RunOption", "SiloArgument"]

SiloArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Silo folder.", show_default=False)
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        help="An exported adapter's folder, or a round's file of a run. Default: the local "
        "adapter in DIR/local/TASK, else the newest that the daemon was sent.",
        show_default=False,
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(help="Run file with task and model, where DIR does not say.", show_default=False),
]
JobOption = Annotated[
    str | None,
    typer.Option(help="Of which run the daemon's adapter shall be.", show_default=False),
]
LocalOption = Annotated[bool, typer.Option(help="Take the local adapter where there is one.")]
