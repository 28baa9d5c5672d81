"""``silotune client score``: what the model says of a merchant's own customers."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silotune.cli.terminal import progress_bar
from silotune.errors import ConfigError

if TYPE_CHECKING:
    from client.fairness import AttributeQuality, GroupQuality
    from client.score import Scored
    from client.score_settings import ScoreSettings
    from silotune.tables.silo_folder import SiloFolder

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
        typer.Option(
            help="Score the task's test examples instead, what happened beside them; and show "
            "quality by group of customers, where the silo's `users` knows any."
        ),
    ] = False,
    least_users: Annotated[
        int, typer.Option(help="Customers of a group that is shown, at least; 20 or more.")
    ] = 20,
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
    if with_labels:
        _by_group(scored, silo, task, path, least_users)
    if before is not None:
        _show_drift(before, scored, settings)


def _by_group(
    scored: "Scored", silo: "SiloFolder", task: str, path: Path, least_users: int
) -> None:
    from client.fairness import groups_markdown, quality_by_group, user_groups
    from client.whole_file import write_text

    found = quality_by_group(scored, user_groups(silo), least_users=least_users)
    if not found:
        return
    page = path.with_name(f"{path.stem}-groups.md")
    title = f"Quality of {task} by group of customers, {silo.info.name}"
    write_text(page, groups_markdown(found, title, least_users))
    _show_groups(found, least_users)
    typer.echo(f"Quality by group: {page}.")


def _show_groups(found: "list[AttributeQuality]", least_users: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", title_justify="left")
    table.title = f"Quality ({found[0].metric}) by group of customers. It stays here."
    for name in ("attribute", "group", "customers", "quality", "95%"):
        table.add_column(name, justify="right" if name in ("customers", "quality") else "left")
    for one in found:
        for g in one.groups:
            # `Text`: a merchant's own words may hold brackets.
            table.add_row(
                Text(one.attribute), Text(g.name), f"{g.users:,}", f"{g.value:.3f}", _range(g)
            )
        words = f"no two groups of {least_users} customers"
        if one.groups:
            words = f"gap, by chance up to {one.chance:.3f}: {one.verdict}"
        gap = f"{one.gap:.3f}" if one.groups else ""
        table.add_row(
            Text(one.attribute), words, "", gap, _range(one) if one.groups else "", style="dim"
        )
    Console().print(table)


def _range(one: "GroupQuality | AttributeQuality") -> str:
    return f"{one.low:.3f} to {one.high:.3f}"


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
