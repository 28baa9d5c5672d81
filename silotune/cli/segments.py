"""``silotune client segments``: a merchant's customers in segments, each in plain words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.cli.adapter_options import (
    AdapterOption,
    JobOption,
    LocalOption,
    RunOption,
    SiloArgument,
)
from silotune.cli.score import moment

if TYPE_CHECKING:
    from client.segments import Segments

__all__ = ["add_segments"]


def add_segments(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""
    group.command("segments")(_segments)


def _segments(
    folder: SiloArgument,
    clusters: Annotated[int, typer.Option(help="Segments to look for.")] = 8,
    least_users: Annotated[
        int, typer.Option(help="Customers of a segment, and behind all said of it; 20 or more.")
    ] = 20,
    task: Annotated[str, typer.Option(help="Task of customers.")] = "customer-segment",
    adapter: AdapterOption = None,
    run: RunOption = None,
    job: JobOption = None,
    local: LocalOption = True,
    as_of: Annotated[
        str | None,
        typer.Option(help="Moment in UTC. Default: the tables' end.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Where the searches begin.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file; the profiles stand beside it as .md. Default: "
            "DIR/scores/segments.parquet.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find segments of customers by what the adapted model sees in them, and describe each.

    It stays inside: nothing is released, nothing is charged.
    """
    date = moment(as_of, "--as-of")
    from client.score import load_model
    from client.score_file import about, write_parquet
    from client.score_settings import score_settings
    from client.segment_profiles import markdown
    from client.segments import SegmentSettings, find_segments, segment_table
    from client.whole_file import write_text
    from silotune.tables.silo_folder import SiloFolder

    wanted = SegmentSettings(clusters=clusters, least_users=least_users, seed=seed)
    silo = SiloFolder.open(folder)
    settings = score_settings(folder, task, adapter=adapter, run=run, job=job, local=local)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    found = find_segments(wanted, settings.task, load_model(settings), silo, as_of=date)
    path = out or folder / "scores" / "segments.parquet"
    write_parquet(segment_table(found), path, about(settings, found.date))
    title = f"Customer segments of {silo.info.name}, {found.date:%Y-%m-%d}"
    page = path.with_suffix(".md")
    write_text(page, markdown(found.profiles, title, least_users))
    _show(found)
    typer.echo(f"{path}: {len(found.user_id):,} customers. Profiles: {page}.")


def _show(found: "Segments") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", title_justify="left", padding=(0, 2, 1, 0))
    table.title = f"Segments on {found.date:%Y-%m-%d}. They stay here."
    table.add_column("segment", justify="right")
    table.add_column("customers", justify="right")
    table.add_column("what they are like")
    for p in found.profiles:
        size = "–" if p.users is None else f"{p.users:,} ({p.share:.0%})"
        # `Text`: a category's name may hold brackets.
        table.add_row(str(p.segment), size, Text(p.sentence()))
    Console().print(table)
