"""``silotune data``: a merchant's tables, checked and imported, and tables to try things with."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silotune.cli.terminal import progress_bar, show_problems

if TYPE_CHECKING:
    from silotune.tables.problems import Report

__all__ = ["import_silo", "register"]

# Described in the commands' texts: with some versions of click an argument's help is not shown.
_Source = Annotated[str, typer.Argument(metavar="SOURCE", show_default=False)]
_Out = Annotated[Path, typer.Argument(metavar="OUT", show_default=False)]
_Schema = Annotated[
    str | None, typer.Option(help="Schema of the database's tables.", show_default=False)
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def _option(text: str, default: float) -> Any:
    # The true default is the configuration's own, whose module would take long to import here.
    return typer.Option(help=f"{text} Default: {default}.", show_default=False)


_group = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to ``root``."""
    root.add_typer(_group, name="data", help="Check, import and make merchants' tables.")


@_group.command("check")
def _check(
    source: _Source,
    schema: _Schema = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: _Quiet = False,
) -> None:
    """Check every row of a merchant's tables; exit code 2 if they cannot be imported.

    SOURCE: a folder with events, items and promotions (.parquet or .csv),
    or a database, postgresql://user@host/database.
    """
    from silotune.tables.checks import check

    with progress_bar("Reading", quiet=quiet) as progress:
        report = check(source, schema=schema, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _show_report(report)
    if not report.ok:
        raise typer.Exit(2)


@_group.command("import")
def _import(
    source: _Source,
    out: _Out,
    name: Annotated[str, typer.Option(help="Public name of the silo.")],
    nominal_users: Annotated[
        int, typer.Option(help="Number of customers to declare, roughly; public.")
    ],
    schema: _Schema = None,
    quiet: _Quiet = False,
) -> None:
    """Check a merchant's tables and write them as a silo folder: all of them, or nothing.

    SOURCE: a folder with events, items and promotions (.parquet or .csv),
    or a database, postgresql://user@host/database. OUT: the folder to make.
    """
    import_silo(source, out, name=name, nominal_users=nominal_users, schema=schema, quiet=quiet)


def import_silo(
    source: str,
    out: Path,
    *,
    name: str,
    nominal_users: int,
    schema: str | None = None,
    quiet: bool = False,
) -> None:
    """Import with a progress bar, warnings and a last line. Raises as `import_tables`."""
    from silotune.tables.importer import import_tables

    reports: list[Report] = []
    with progress_bar("Reading", quiet=quiet) as progress:
        info = import_tables(
            source,
            out,
            name=name,
            nominal_users=nominal_users,
            schema=schema,
            progress=progress,
            on_report=reports.append,
        )
    show_problems(list(reports[0].problems), stderr=True)
    typer.echo(f"{out}: silo '{info.name}', {reports[0].tables['events'].rows:,} events.")


@_group.command("complete-journey")
def _complete_journey(
    out: _Out,
    merchants: Annotated[int, typer.Option(help="Number of stores, the largest first.")],
    groups: Annotated[
        int | None,
        typer.Option(help="Merge the stores into so many merchants.", show_default=False),
    ] = None,
    quiet: _Quiet = False,
) -> None:
    """Write stores of the Complete Journey data set as silo folders in the new folder OUT."""
    from silotune.tables.complete_journey import convert

    with progress_bar("Writing silos", quiet=quiet) as progress:
        silos = convert(out, merchants=merchants, groups=groups, progress=progress)
    typer.echo(f"{out}: {len(silos)} silos.")


@_group.command("synthetic")
def _synthetic(
    out: _Out,
    merchants: Annotated[int | None, _option("Number of merchants.", 8)] = None,
    users: Annotated[int | None, _option("Customers of each merchant.", 100)] = None,
    items: Annotated[int | None, _option("Items each merchant sells.", 240)] = None,
    categories: Annotated[int | None, _option("Categories of goods.", 24)] = None,
    weeks: Annotated[int | None, _option("Length of the history.", 26)] = None,
    visits_per_user: Annotated[float | None, _option("Mean over all weeks.", 20.0)] = None,
    promotions_per_week: Annotated[int | None, _option("Items each merchant promotes.", 12)] = None,
    promotion_effect: Annotated[float | None, _option("0: promotions go unnoticed.", 1.0)] = None,
    heterogeneity: Annotated[
        float | None, _option("How much merchants differ, 0 to 1.", 0.5)
    ] = None,
    overlap: Annotated[
        float | None, _option("Share of customers with a second merchant.", 0.2)
    ] = None,
    rated: Annotated[
        float | None, _option("Share of purchases that get 1 to 5 stars, days later.", 0.0)
    ] = None,
    seed: Annotated[int | None, _option("The same seed, the same tables.", 0)] = None,
    quiet: _Quiet = False,
) -> None:
    """Write made-up merchants as silo folders in the new folder OUT."""
    from silotune.tables.synthetic import SyntheticConfig, generate

    options: dict[str, Any] = {
        "merchants": merchants,
        "users_per_merchant": users,
        "items": items,
        "categories": categories,
        "weeks": weeks,
        "visits_per_user": visits_per_user,
        "promotions_per_week": promotions_per_week,
        "promotion_effect": promotion_effect,
        "heterogeneity": heterogeneity,
        "overlap": overlap,
        "rated": rated,
        "seed": seed,
    }
    config = SyntheticConfig(**{k: value for k, value in options.items() if value is not None})
    with progress_bar("Writing silos", quiet=quiet) as progress:
        silos = generate(config, out, progress)
    typer.echo(f"{out}: {len(silos)} silos.")


def _show_report(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = Table("table", "read from", title=Text(report.source), title_justify="left")
    shown.add_column("rows", justify="right")
    shown.add_column("empty values")
    for name, table in report.tables.items():
        empties = [
            f"{column} {count / table.rows:.1%}" for column, count in table.empties.items() if count
        ]
        shown.add_row(name, Text(table.file), f"{table.rows:,}", Text(", ".join(empties) or "none"))
    console.print(shown)
    if report.first_time is not None and report.last_time is not None:
        span = f"{report.first_time:%Y-%m-%d} to {report.last_time:%Y-%m-%d}"
        console.print(
            f"{report.users:,} customers, {report.items:,} items, {span}", highlight=False
        )
    show_problems(list(report.problems))
    verdict = (
        "can be imported" if report.ok else f"{len(report.of('error'))} errors: cannot be imported"
    )
    console.print(verdict, style="green" if report.ok else "bold red", highlight=False)
