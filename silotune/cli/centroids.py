"""``silotune client centroids``: noised centroids of a merchant's customers, for its aggregator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.cli.adapter_options import SiloArgument
from silotune.cli.score import moment
from silotune.errors import ConfigError

if TYPE_CHECKING:
    from client.centroids import Released

__all__ = ["add_centroids"]


def add_centroids(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""
    group.command("centroids")(_centroids)


def _centroids(
    folder: SiloArgument,
    as_of: Annotated[
        str, typer.Option(help="Date of the customers, in UTC; public.", show_default=False)
    ],
    noise_multiplier: Annotated[
        float, typer.Option(help="Noise on every number, over what one customer adds.")
    ] = 10.0,
    clusters: Annotated[int, typer.Option(help="Clusters.")] = 8,
    axes: Annotated[int, typer.Option(help="Coordinates of a customer; fewer are less noisy.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of the search; each costs.")] = 1,
    task: Annotated[str, typer.Option(help="Task of customers.")] = "customer-segment",
    job: Annotated[
        str | None,
        typer.Option(help="Of which run the aggregator's adapter shall be.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: DIR/releases/centroids-DATE.safetensors.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Release centroids of customers: noised, inside the policy, charged to the ledger.

    The file may be given to the aggregator. The daemon must be stopped meanwhile: it holds the
    ledger. The same command again writes the same file at no further cost.
    """
    date = moment(as_of, "--as-of")
    if date is None:
        raise ConfigError("--as-of is empty; write a date as 2024-03-01.")
    from client.centroids import release_centroids
    from privacy.centroids import CentroidPlan

    plan = CentroidPlan(
        noise_multiplier=noise_multiplier, clusters=clusters, axes=axes, steps=steps
    )
    path = out or folder / "releases" / f"centroids-{date:%Y-%m-%d}.safetensors"
    found = release_centroids(folder, plan, task=task, as_of=date, out=path, job=job)
    _show(found)
    cost = "as released before, at no further cost" if found.again else f"ε = {found.epsilon:.3f}"
    typer.echo(f"{path}: {cost}. Spent by each user: ε = {found.spent:.3f}.")


def _show(found: "Released") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", title_justify="left")
    table.title = "What left"
    for name in ("cluster", "customers", "centroid"):
        table.add_column(name, justify="left" if name == "centroid" else "right")
    for number, (count, centroid) in enumerate(
        zip(found.count_K, found.centroid_KP, strict=True), 1
    ):
        table.add_row(str(number), f"{count:.0f}", " ".join(f"{x:+.2f}" for x in centroid))
    Console().print(table)
