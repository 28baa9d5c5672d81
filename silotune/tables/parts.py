"""The parts of a table: one file each, or the table of a database.

A part knows its columns before it is read, and loads its rows with an INSERT that it is given.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import duckdb

from silotune.tables.csv_files import QUOTES_REMEDY, CsvFile, inspect_csv, line_at, lines_of_rows
from silotune.tables.local_work import is_shortage
from silotune.tables.postgres import READ_REMEDY, PostgresSource
from silotune.tables.problems import UnreadableError, counted
from silotune.tables.schema import TABLES, Table
from silotune.tables.staging import sql_path

__all__ = [
    "CsvPart",
    "DatabasePart",
    "ParquetPart",
    "Part",
    "find_files",
    "refuse_double_names",
]

_STREAM = "__stream"

_CSV_ERRORS = {
    "MISSING COLUMNS": "has {rows} with fewer fields than the header",
    "TOO MANY COLUMNS": "has {rows} with more fields than the header",
    "UNQUOTED VALUE": "has {rows} whose quotes do not match",
    "LINE SIZE OVER MAXIMUM": "has {rows} of more than 2 MB",
}


class Part(Protocol):
    """One file or one table of a database."""

    name: str
    """As messages call it."""
    columns: dict[str, str]
    """DuckDB type by name, in order. A type without a counterpart has the source's name."""

    def load(self, insert: str) -> int:
        """Run ``insert``, an INSERT that ends in FROM, over the rows in order; return how many.

        Raises:
            UnreadableError: the rows cannot be read; none of them was inserted.
        """
        ...

    def lines(self, rows: Collection[int]) -> dict[int, int]:
        """Return the line on which each of ``rows`` begins, where there are lines."""
        ...


class ParquetPart:
    """One Parquet file."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str, path: Path) -> None:
        """Read the file's schema. Raises UnreadableError."""
        self.name, self._connection = name, connection
        self._relation = f"read_parquet({_sql_file(path)})"
        with _unreadable("cannot be read as Parquet", "It is cut off or damaged: export it again."):
            rows = connection.execute(f"DESCRIBE FROM {self._relation}").fetchall()
        self.columns = {str(row[0]): str(row[1]) for row in rows}

    def load(self, insert: str) -> int:
        """See `Part`."""
        with _unreadable("cannot be read as Parquet", "It is cut off or damaged: export it again."):
            return _count(self._connection.execute(f"{insert} {self._relation}"))

    def lines(self, rows: Collection[int]) -> dict[int, int]:  # noqa: ARG002 - no lines here
        """See `Part`."""
        return {}


class CsvPart:
    """One CSV file, every field as text."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, name: str, path: Path, table: Table
    ) -> None:
        """Read the file for encoding and header. Raises UnreadableError."""
        self.name, self._connection = name, connection
        self._file: CsvFile = inspect_csv(path, table.names)
        header = self._file.header
        if "" in header:
            raise UnreadableError(
                f"has no name for column {header.index('') + 1} in its first line",
                "Give every column a name, or drop the delimiter at the end of the line.",
            )
        refuse_double_names(header)
        self.columns = dict.fromkeys(header, "VARCHAR")

    def load(self, insert: str) -> int:
        """See `Part`."""
        connection = self._connection
        connection.begin()
        try:
            with _unreadable("cannot be read as CSV", QUOTES_REMEDY):
                count = _count(connection.execute(f"{insert} {self._relation()}"))
            self._verify(count)
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
        return count

    def lines(self, rows: Collection[int]) -> dict[int, int]:
        """See `Part`."""
        return lines_of_rows(self._file, rows)

    def _relation(self) -> str:
        types = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in self.columns)
        # In parallel a reader starts somewhere in the file and may mistake a line break within
        # quotes for the end of a row; without quotes it cannot.
        parallel = str(self._file.rows is None).lower()
        return (
            f"read_csv({_sql_file(self._file.path)}, columns = {{{types}}}, "
            f"delim = {_text(self._file.delimiter)}, header = true, quote = '\"', escape = '\"', "
            f"auto_detect = false, parallel = {parallel}, store_rejects = true)"
        )

    def _verify(self, count: int) -> None:
        rejects = self._connection.execute(
            "SELECT CAST(error_type AS VARCHAR), count(DISTINCT line_byte_position), "
            "min(line_byte_position) "
            "FROM reject_errors GROUP BY ALL ORDER BY 3, 1"
        ).fetchall()
        if rejects:
            kind, rows, byte = rejects[0]
            message = _CSV_ERRORS.get(kind, "has {rows} that cannot be read")
            message = message.format(rows=counted(rows, "row"))
            # The position counts from 1, and the line break before a row belongs to it.
            line = line_at(self._file.path, byte - 1)
            raise UnreadableError(message, QUOTES_REMEDY, first_line=line, count=rows)
        if self._file.rows not in (None, count):
            raise UnreadableError("has quotes that can be read in two ways", QUOTES_REMEDY)


class DatabasePart:
    """One table or view of a database."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, database: PostgresSource, table: Table
    ) -> None:
        """Look the table's columns up; none: the table does not exist. Raises UnreadableError."""
        self.name = f"{database.schema}.{table.name}"
        self._connection, self._database, self._table = connection, database, table
        self.columns = database.columns(table.name)
        refuse_double_names(list(self.columns))

    def load(self, insert: str) -> int:
        """See `Part`."""
        self._connection.register(_STREAM, self._database.read(self._table.name, self.columns))
        try:
            return _count(self._connection.execute(f"{insert} {_STREAM}"))
        except duckdb.Error as error:
            if is_shortage(error) or isinstance(error, duckdb.InterruptException):
                raise
            reason = self._database.reason(error)
            self._connection.unregister(_STREAM)
            self._database.recover()
            raise UnreadableError(f"cannot be read ({reason})", READ_REMEDY) from None
        finally:
            self._connection.unregister(_STREAM)

    def lines(self, rows: Collection[int]) -> dict[int, int]:  # noqa: ARG002 - no lines here
        """See `Part`."""
        return {}


def find_files(folder: Path, table: Table) -> tuple[str, list[Path]] | None:
    """Return what ``table`` is called and its files, by name; None: it is optional and not there.

    Raises:
        UnreadableError: it is required and not there, or there more than once, or its folder
            holds no files or odd ones.
    """
    name = table.name
    candidates = [folder / f"{name}.parquet", folder / f"{name}.csv", folder / name]
    found = [path for path in candidates if path.exists()]
    if not found and not table.required:
        return None
    if not found:
        known = {f"{t.name}{end}" for t in TABLES for end in ("", ".parquet", ".csv")}
        others = {p.name.casefold(): p.name for p in folder.iterdir() if p.name not in known}
        near = [
            others[match]
            for file in (f"{name}.parquet", f"{name}.csv")
            for match in difflib.get_close_matches(file, others, n=1)
        ]
        hint = f"Is it '{near[0]}'? Rename that." if near else "Export it."
        raise UnreadableError(f"is missing: no {name}.parquet, {name}.csv or folder {name}/", hint)
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise UnreadableError(f"is there more than once: {both}", "Leave one of them.")
    if found[0].is_file():
        return found[0].name, found
    files = [p for p in sorted(found[0].iterdir()) if not p.name.startswith((".", "_"))]
    odd = [p for p in files if p.suffix not in (".parquet", ".csv") or not p.is_file()]
    if odd:
        raise UnreadableError(
            f"holds '{odd[0].name}', which is neither a .parquet nor a .csv file",
            "Put the part files directly into the folder, and nothing else.",
        )
    if not files:
        raise UnreadableError("is a folder without .parquet or .csv files", "Export it again.")
    return f"{found[0].name}/", files


def refuse_double_names(names: Collection[str]) -> None:
    """Raise UnreadableError where two columns have the same name but for upper and lower case."""
    seen: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if folded in seen:
            raise UnreadableError(
                f"has two columns '{seen[folded]}' and '{name}', which cannot be told apart",
                "Rename or drop one of them; upper and lower case do not count.",
            )
        seen[folded] = name


def _sql_file(path: Path) -> str:
    # DuckDB takes '*', '?' and '[' in a path for a pattern unless they are bracketed.
    return sql_path(Path(re.sub(r"([*?\[])", r"[\1]", str(path))))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _count(result: duckdb.DuckDBPyConnection) -> int:
    return int(result.fetchall()[0][0])


@contextmanager
def _unreadable(message: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        if is_shortage(error) or isinstance(error, duckdb.InterruptException):
            raise
        # DuckDB's own words may quote a row, so they are left out.
        raise UnreadableError(message, remedy) from error
