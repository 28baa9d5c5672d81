"""``silotune client score``: what the model says of a merchant's own customers."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.cli.terminal import progress_bar
from silotune.errors import ConfigError

if TYPE_CHECKING:
    from client.score import Scored
    from client.score_settings import ScoreSettings

__all__ = ["add_score", "moment"]


def add_score(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""
    group.command("score")(_score)


def _score(
    task: Annotated[str, typer.Argument(metavar="TASK", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Silo.", show_default=False)],
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="An exported adapter's folder, or a round's file of a run. Default: the local "
            "adapter in DIR/local/TASK, else the newest that the daemon was sent.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run file with task and model, where DIR does not say.", show_default=False
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(help="Of which run the daemon's adapter shall be.", show_default=False),
    ] = None,
    local: Annotated[bool, typer.Option(help="Take the local adapter where there is one.")] = True,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Moment in UTC, as 2024-03-01 or 2024-03-01T09:00. Default: the tables' end.",
            show_default=False,
        ),
    ] = None,
    with_labels: Annotated[
        bool,
        typer.Option(help="Score the task's test examples instead, what happened beside them."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Parquet file. Default: DIR/scores/TASK.parquet.", show_default=False),
    ] = None,
    drift_from: Annotated[
        str | None,
        typer.Option(
            help="Earlier moment: show how inputs and scores moved since.", show_default=False
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Score every customer for TASK as of a date, and write a Parquet file for the merchant.

    It stays inside: nothing is released, nothing is charged. Customers are the silo folder's
    keyed hashes.
    """
    date, earlier = moment(as_of, "--as-of"), moment(drift_from, "--drift-from")
    if with_labels and (date or earlier) is not None:
        raise ConfigError(
            "--with-labels scores examples whose outcome is known: leave out --as-of and "
            "--drift-from."
        )
    from client.score import load_model, score_silo, write_scores
    from client.score_settings import score_settings
    from silotune.tables.silo_folder import SiloFolder

    silo = SiloFolder.open(folder)
    settings = score_settings(folder, task, adapter=adapter, run=run, job=job, local=local)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    model = load_model(settings)
    with progress_bar("Scoring", quiet=quiet) as progress:
        scored = score_silo(
            settings, silo, as_of=date, own_examples=with_labels, model=model, progress=progress
        )
    before = None
    if earlier is not None:
        if scored.date is None or earlier >= scored.date:
            raise ConfigError(f"--drift-from is {earlier}; it must be before {scored.date}.")
        before = score_silo(settings, silo, as_of=earlier, model=model)
    path = out or folder / "scores" / f"{task}.parquet"
    write_scores(scored, settings, path, with_labels=with_labels)
    when = f"as of {scored.date:%Y-%m-%d %H:%M}" if scored.date else "test examples"
    typer.echo(f"{path}: {len(scored.rows):,} rows, {when}, adapter {settings.adapter}.")
    if before is not None:
        _show_drift(before, scored, settings)


def _show_drift(before: "Scored", now: "Scored", settings: "ScoreSettings") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from client.drift import drift_of

    table = Table(box=None, header_style="bold", title_justify="left")
    table.title = f"Drift from {before.date:%Y-%m-%d} to {now.date:%Y-%m-%d}. It stays here."
    for name in ("column", "mean before", "mean now", "index", "by chance", "moved"):
        table.add_column(name, justify="left" if name in ("column", "moved") else "right")
    for one in drift_of(before, now, settings.task.numeric_names):
        figures = (one.before, one.now, one.index, one.chance)
        table.add_row(Text(one.name), *(f"{f:.3f}" for f in figures), one.verdict)
    Console().print(table)


def moment(text: str | None, option: str) -> dt.datetime | None:
    """Return what ``option`` says of a moment in UTC, or None. Raises ConfigError."""
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; write it as 2024-03-01T09:00.") from None
    if moment.tzinfo is not None:
        raise ConfigError(f"{option} is {text!r}; leave out the zone: the tables are in UTC.")
    return moment
