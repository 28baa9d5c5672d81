"""``silotune simulate``: many merchants on one machine, compared arm by arm."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(root: typer.Typer) -> None:
    """Add the command to ``root``."""
    root.command("simulate")(_simulate)


def _simulate(
    scenario: str,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/NAME. A stopped run goes on.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Where silo folders are made and kept.")] = Path(
        "data"
    ),
    seeds: Annotated[
        int | None, typer.Option(help="Repetitions, in place of the scenario's.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="'pool', 'flower' (Ray) or 'inline'.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Run SCENARIO: a TOML file, or one of silotune (demo, complete-journey, interest, churn, …).

    Trains every arm of the comparison on the same merchants and the same split by time, prints
    the table and writes one HTML report.
    """
    from rich.console import Console

    from simulations.start import simulate

    simulate(
        scenario,
        out=out,
        data=data,
        seeds=seeds,
        engine=engine,
        console=Console(),
        progress=None if quiet else Console(stderr=True),
    )
