"""One table of a source once it is in DuckDB, and whether it has the columns it should have."""

import bisect
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

from silotune.tables.casts import cast, quoted
from silotune.tables.parts import Part, refuse_double_names
from silotune.tables.problems import Problem
from silotune.tables.schema import Column, Table

__all__ = ["FAILED", "StagedTable", "check_columns"]

FAILED = "__failed"
"""Ends the name of the column that keeps what could not be converted."""

_KINDS = {
    "text": ("text", "Store it as text."),
    "number": ("a number", "Store it as a number."),
    "time": ("a time", "Store it as a timestamp in UTC."),
}


@dataclass(kw_only=True, slots=True)
class StagedTable:
    """One table of the source, typed; ``rowid`` is the order of the source's rows."""

    table: Table
    file: str
    """What the table is called in messages: file, folder or table of a database."""
    parts: list[Part] = field(default_factory=list)
    read: list[Part] = field(default_factory=list)
    """The parts whose rows are here."""
    starts: list[int] = field(default_factory=list)
    """First ``rowid`` of each of them."""
    rows: int = 0
    complete: bool = True
    """Every part could be read."""
    present: list[str] = field(default_factory=list)
    """Columns of the schema that are here, in a usable type."""
    attributes: list[str] = field(default_factory=list)
    """Further columns, of users."""

    @property
    def query(self) -> str:
        """The SELECT of the columns that a silo keeps."""
        names = ", ".join(map(quoted, [*self.table.names, *self.attributes]))
        return f"SELECT {names} FROM {self.table.name}"  # noqa: S608 - quoted

    def place(self, rowid: int) -> tuple[Part, int]:
        """Return the part of a row and its number in it, from 1."""
        index = bisect.bisect_right(self.starts, rowid) - 1
        return self.read[index], rowid - self.starts[index] + 1


def check_columns(staged: StagedTable) -> list[Problem]:
    """Return what is wrong with the columns; set `StagedTable.present` and `attributes`.

    Raises:
        UnreadableError: columns of different parts cannot be told apart.
    """
    table = staged.table
    names = dict.fromkeys(name for part in staged.parts for name in part.columns)
    refuse_double_names(names)
    unknown = [name for name in names if name not in table.names]
    problems = []
    for column in table.columns:
        found = list(_column_problems(staged, column, unknown))
        problems += found
        if not found and any(column.name in part.columns for part in staged.parts):
            staged.present.append(column.name)
    if table.extra_text_columns:
        staged.attributes = unknown
    else:
        # A required column that is missing has said already which one it may be.
        absent = [c.name for c in table.columns if c.name not in names and not c.required]
        missing = [c.name for c in table.columns if c.name not in names and c.required]
        named = {_near(name, unknown) for name in missing}
        problems += [_unknown(staged, name, absent) for name in unknown if name not in named]
    return problems


def _column_problems(staged: StagedTable, column: Column, unknown: list[str]) -> Iterator[Problem]:
    lacking = [part for part in staged.parts if column.name not in part.columns]
    if lacking and column.required:
        near = _near(column.name, unknown)
        yield Problem(
            severity="error",
            file=lacking[0].name,
            column=column.name,
            count=len(lacking),
            message="is missing",
            remedy=f"Is it '{near}'? Rename that." if near else f"Add it: {column.meaning}.",
        )
    types = [(p, p.columns[column.name]) for p in staged.parts if column.name in p.columns]
    wrong = [(part, kind) for part, kind in types if cast(column, kind) is None]
    if wrong:
        what, remedy = _KINDS[column.kind]
        yield Problem(
            severity="error",
            file=wrong[0][0].name,
            column=column.name,
            count=len(wrong),
            message=f"is of type {wrong[0][1]}; it must be {what}",
            remedy=remedy,
        )


def _unknown(staged: StagedTable, name: str, absent: list[str]) -> Problem:
    having = [part for part in staged.parts if name in part.columns]
    near = _near(name, absent)
    known = ", ".join(staged.table.names)
    return Problem(
        severity="warning",
        file=having[0].name,
        column=name,
        count=len(having),
        message="is not used",
        remedy=f"Is it '{near}'? Rename it." if near else f"Columns of the table: {known}.",
    )


def _near(name: str, others: list[str]) -> str | None:
    folded = {other.casefold(): other for other in others}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[matches[0]] if matches else None
