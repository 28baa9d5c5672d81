"""``silotune client score``: what the model says of a merchant's own customers."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
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
from silotune.cli.terminal import progress_bar
from silotune.errors import ConfigError

if TYPE_CHECKING:
    from client.fairness import AttributeQuality, GroupQuality
    from client.outcomes import Outcomes
    from client.score import Scored
    from client.score_settings import ScoreSettings
    from silotune.tables.silo_folder import SiloFolder

__all__ = ["add_score", "moment"]


def add_score(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""
    group.command("score")(_score)


def _score(
    task: Annotated[str, typer.Argument(metavar="TASK", show_default=False)],
    folder: SiloArgument,
    adapter: AdapterOption = None,
    run: RunOption = None,
    job: JobOption = None,
    local: LocalOption = True,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Moment in UTC, as 2024-03-01 or 2024-03-01T09:00. Default: the tables' end.",
            show_default=False,
        ),
    ] = None,
    customers: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file with a column user_id: keyed hashes, as in a file of scores, or "
            "your own ids. Default: everyone.",
            show_default=False,
        ),
    ] = None,
    per_customer: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Ask about at most N offers or items per customer: of what they took most often, "
            "then drawn by hash. Default: all.",
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
    groups: Annotated[
        bool,
        typer.Option(
            help="Show quality by group with --with-labels; it takes time where there are many "
            "rows. Of tasks about products there is none."
        ),
    ] = True,
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
    from client.customers_file import read_customers
    from client.outcomes import Outcomes
    from client.score import Asked, load_model, score_parts
    from client.score_file import write_scores
    from client.score_settings import score_settings
    from silotune.tables.silo_folder import SiloFolder

    silo = SiloFolder.open(folder)
    settings = score_settings(folder, task, adapter=adapter, run=run, job=job, local=local)
    asked = Asked(
        as_of=date,
        own_examples=with_labels,
        customers=read_customers(customers, silo) if customers else None,
        most=per_customer,
    )
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    attributes = _attributes(settings, silo, least_users) if with_labels and groups else {}
    model = load_model(settings)
    path = out or folder / "scores" / f"{task}.parquet"
    now: list[Scored] = []
    outcomes: list[Outcomes] = []

    def parts() -> Iterator["Scored"]:
        for part in score_parts(settings, silo, asked, model=model, progress=progress):
            if earlier is not None and (part.date is None or earlier >= part.date):
                raise ConfigError(f"--drift-from is {earlier}; it must be before {part.date}.")
            if earlier is not None:
                now.append(part.without_words())
            if attributes:
                outcomes.append(Outcomes.of(part))
            yield part

    with progress_bar("Customers", quiet=quiet) as progress:
        written = write_scores(parts(), settings, path, with_labels=with_labels)
    when = f"as of {written.date:%Y-%m-%d %H:%M}" if written.date else "test examples"
    typer.echo(f"{path}: {written.rows:,} rows, {when}, adapter {settings.adapter}.")
    if attributes:
        title = f"Quality of {task} by group of customers, {silo.info.name}"
        page = path.with_name(f"{path.stem}-groups.md")
        _by_group(outcomes, attributes, title, page, least_users)
    if earlier is not None:
        with progress_bar("Customers then", quiet=quiet) as progress:
            then = score_parts(
                settings, silo, replace(asked, as_of=earlier), model=model, progress=progress
            )
            before = [part.without_words() for part in then]
        _show_drift(before, now, settings)


def _attributes(
    settings: "ScoreSettings", silo: "SiloFolder", least_users: int
) -> dict[str, dict[str, str]]:
    """Return what is known of customers; nothing where the task is about products."""
    from client.fairness import user_groups
    from client.segment_profiles import check_least_users
    from silotune.tasks.base import ListsProducts

    # At the start: hours of scoring should not end in a refusal.
    check_least_users(least_users)
    return {} if isinstance(settings.task, ListsProducts) else user_groups(silo)


def _by_group(
    outcomes: "list[Outcomes]",
    attributes: dict[str, dict[str, str]],
    title: str,
    page: Path,
    least_users: int,
) -> None:
    from client.fairness import groups_markdown, quality_by_group
    from client.whole_file import write_text

    found = quality_by_group(outcomes, attributes, least_users=least_users)
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


def _show_drift(before: "list[Scored]", now: "list[Scored]", settings: "ScoreSettings") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from client.drift import drift_of

    table = Table(box=None, header_style="bold", title_justify="left")
    table.title = f"Drift from {before[0].date:%Y-%m-%d} to {now[0].date:%Y-%m-%d}. It stays here."
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
