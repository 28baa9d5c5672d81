"""Checking every row of a merchant's tables, in SQL, and collecting all that is wrong."""

import datetime as dt
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from silotune.tables.casts import quoted
from silotune.tables.local_work import Cancellable, explain_full_disk
from silotune.tables.problems import Problem, Report, TableReport
from silotune.tables.readers import Progress, Stage, read_source
from silotune.tables.rules import Rule, row_rules
from silotune.tables.schema import EVENTS, ITEMS, PROMOTIONS, USERS
from silotune.tables.staged_table import FAILED, StagedTable

if TYPE_CHECKING:
    from silotune.tables.parts import Part

__all__ = ["Problem", "Report", "TableReport", "check", "check_stage"]

_SAMPLE_CHARACTERS = 40


def check(
    source: str | Path, *, schema: str | None = None, progress: Progress | None = None
) -> Report:
    """Read ``source`` once, check every row and report what it holds and what is wrong.

    Args:
        source: a folder of Parquet or CSV files, or ``postgresql://…``; see `readers`.
        schema: schema of the database's tables; None: named in the address, or its default.
        progress: called with (parts read, parts in all).

    Raises:
        DataError: there is no such folder or database, or the disk of the temporary folder is
            full. Everything else is in the report.
    """
    work = Cancellable()

    def run() -> Report:
        with read_source(
            source, schema=schema, progress=progress, on_cancel=work.on_cancel
        ) as stage:
            return check_stage(stage)

    with explain_full_disk(Path(tempfile.gettempdir()), "nothing was checked."):
        return work.run(run)


def check_stage(stage: Stage) -> Report:
    """Check the rows of ``stage``; its own problems come first in the report."""
    # Without zone, as the tables' times are.
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    findings: list[_Finding] = []
    tables: dict[str, TableReport] = {}
    problems = list(stage.problems)
    for name, staged in stage.tables.items():
        if not staged.rows:
            if staged.complete:
                problems.append(_no_rows(staged))
            continue
        findings += _broken_rules(stage.connection, staged, now)
        findings += _repeated_keys(stage.connection, staged)
        findings += _unsorted(stage.connection, staged)
        findings += _unknown_items(stage, staged)
        findings += _unknown_categories(stage, staged)
        empties = _empties(stage.connection, staged)
        tables[name] = TableReport(file=staged.file, rows=staged.rows, empties=empties)
    users, first, last = _activity(stage)
    return Report(
        source=stage.source,
        tables=tables,
        users=users,
        items=tables[ITEMS.name].rows if ITEMS.name in tables else 0,
        first_time=first,
        last_time=last,
        problems=(*problems, *_located(findings)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """A rule, the rows that break it, and the first of them."""

    staged: StagedTable
    rule: Rule
    count: int
    rowid: int
    sample: str | None


def _no_rows(staged: StagedTable) -> Problem:
    remedy = "Export it again." if staged.table.required else "Fill it, or leave it out."
    return Problem(severity="error", file=staged.file, message="has no rows", remedy=remedy)


def _broken_rules(
    connection: duckdb.DuckDBPyConnection, staged: StagedTable, now: dt.datetime
) -> Iterator[_Finding]:
    """Check all rules of single rows in one pass."""
    rules = list(row_rules(staged))
    aggregates = []
    for rule in rules:
        only = f"FILTER (WHERE {rule.broken})"
        aggregates += [
            f"count(*) {only}",
            f"min(rowid) {only}",
            f"arg_min(CAST({rule.sample} AS VARCHAR), rowid) {only}",
        ]
    if not rules:
        return
    query = f"SELECT {', '.join(aggregates)} FROM {staged.table.name}"  # noqa: S608 - our own SQL
    row = connection.execute(query, {"now": now} if "$now" in query else None).fetchall()[0]
    for index, rule in enumerate(rules):
        count, rowid, sample = row[3 * index : 3 * index + 3]
        if count:
            yield _Finding(staged=staged, rule=rule, count=count, rowid=rowid, sample=sample)


def _repeated_keys(
    connection: duckdb.DuckDBPyConnection, staged: StagedTable
) -> Iterator[_Finding]:
    for key in staged.table.key:
        if key not in staged.present:
            continue
        shown = key if staged.table is not USERS else "NULL"
        query = f"""
            WITH repeated AS (
                SELECT {key} FROM {staged.table.name} WHERE {key} IS NOT NULL
                GROUP BY {key} HAVING count(*) > 1
            ), numbered AS (
                SELECT rowid AS place, {key},
                    row_number() OVER (PARTITION BY {key} ORDER BY rowid) AS time
                FROM {staged.table.name} SEMI JOIN repeated USING ({key})
            )
            SELECT count(*), min(place), arg_min({shown}, place) FROM numbered WHERE time > 1
        """  # noqa: S608 - names of the schema
        rule = Rule(
            column=key,
            broken="",
            message="has {n} value{s} that an earlier row has already",
            remedy="Keep one row of each.",
        )
        yield from _found(connection, staged, rule, query)


def _unsorted(connection: duckdb.DuckDBPyConnection, staged: StagedTable) -> Iterator[_Finding]:
    if staged.table is not EVENTS or "time" not in staged.present:
        return
    query = """
        SELECT count(*), min(place), NULL FROM (
            SELECT rowid AS place, time < lag(time) OVER (ORDER BY rowid) AS earlier FROM events
        ) WHERE earlier
    """
    rule = Rule(
        column="time",
        broken="",
        message="has {n} value{s} earlier than the row before",
        remedy="Nothing to do: events are sorted on import.",
        severity="note",
    )
    yield from _found(connection, staged, rule, query)


def _unknown_items(stage: Stage, staged: StagedTable) -> Iterator[_Finding]:
    """Find ids of events and promotions that `items` lacks, if all of `items` could be read."""
    items = stage.tables.get(ITEMS.name)
    if staged.table not in (EVENTS, PROMOTIONS) or "item_id" not in staged.present:
        return
    if items is None or not items.complete or not items.rows or "item_id" not in items.present:
        return
    name = staged.table.name
    query = f"""
        SELECT count(*), min({name}.rowid), arg_min({name}.item_id, {name}.rowid)
        FROM {name} ANTI JOIN items ON {name}.item_id = items.item_id
        WHERE {name}.item_id IS NOT NULL
    """  # noqa: S608 - names of the schema
    rule = Rule(
        column="item_id",
        broken="",
        message=f"has {{n}} value{{s}} that {items.file} lacks",
        remedy="Add the items or drop the rows.",
    )
    yield from _found(stage.connection, staged, rule, query)


def _unknown_categories(stage: Stage, staged: StagedTable) -> Iterator[_Finding]:
    items = stage.tables.get(ITEMS.name)
    if staged.table is not PROMOTIONS or "category" not in staged.present:
        return
    if items is None or not items.complete or "category" not in items.present:
        return
    query = """
        WITH promoted AS (SELECT DISTINCT category FROM promotions WHERE category IS NOT NULL),
        sold AS (SELECT DISTINCT category FROM items),
        unmatched AS (
            SELECT category FROM promoted ANTI JOIN sold
            ON starts_with(sold.category || ' > ', promoted.category || ' > ')
        )
        SELECT count(*), min(promotions.rowid), arg_min(category, promotions.rowid)
        FROM promotions SEMI JOIN unmatched USING (category)
    """
    rule = Rule(
        column="category",
        broken="",
        message=f"has {{n}} value{{s}} that no category in {items.file} begins with",
        remedy="Such a promotion concerns no item; levels are separated by ' > '.",
        severity="warning",
    )
    yield from _found(stage.connection, staged, rule, query)


def _found(
    connection: duckdb.DuckDBPyConnection, staged: StagedTable, rule: Rule, query: str
) -> Iterator[_Finding]:
    count, rowid, sample = connection.execute(query).fetchall()[0]
    if count:
        yield _Finding(staged=staged, rule=rule, count=count, rowid=rowid, sample=sample)


def _empties(connection: duckdb.DuckDBPyConnection, staged: StagedTable) -> dict[str, int]:
    names = [*staged.present, *staged.attributes]
    typed = {c.name for c in staged.table.columns if c.kind != "text"}
    conditions = [
        f"{quoted(name)} IS NULL"
        + (f" AND {quoted(name + FAILED)} IS NULL" if name in typed else "")
        for name in names
    ]
    counts = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in conditions)
    query = f"SELECT {counts or 'NULL'} FROM {staged.table.name}"  # noqa: S608 - quoted
    return dict(zip(names, connection.execute(query).fetchall()[0], strict=False))


def _activity(stage: Stage) -> tuple[int, dt.datetime | None, dt.datetime | None]:
    """Return distinct users, first and last plausible time of the events."""
    if EVENTS.name not in stage.tables:
        return 0, None, None
    users, first, last = stage.connection.execute(
        "SELECT count(DISTINCT user_id), min(time) FILTER (WHERE plausible), "
        "max(time) FILTER (WHERE plausible) FROM (SELECT *, "
        "time BETWEEN TIMESTAMP '1990-01-01' AND TIMESTAMP '9999-12-31' AS plausible FROM events)"
    ).fetchall()[0]
    return users, first, last


def _located(findings: list[_Finding]) -> Iterator[Problem]:
    """Yield the findings as problems, each CSV file read once for its line numbers."""
    wanted: dict[str, tuple[Part, set[int]]] = {}
    for finding in findings:
        part, row = finding.staged.place(finding.rowid)
        wanted.setdefault(part.name, (part, set()))[1].add(row)
    lines = {name: part.lines(rows) for name, (part, rows) in wanted.items()}
    for finding in findings:
        part, row = finding.staged.place(finding.rowid)
        rule, count = finding.rule, finding.count
        sample = finding.sample[:_SAMPLE_CHARACTERS] if finding.sample is not None else None
        yield Problem(
            severity=rule.severity,
            file=part.name,
            column=rule.column,
            first_row=row,
            first_line=lines[part.name].get(row),
            sample=sample,
            count=count,
            message=rule.message.format(n=f"{count:,}", s="" if count == 1 else "s"),
            remedy=rule.remedy,
        )
