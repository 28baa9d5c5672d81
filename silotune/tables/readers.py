"""Reading a merchant's own tables: Parquet files, CSV files or a PostgreSQL database.

A source is read once, as a stream, into a DuckDB file of this machine that vanishes afterwards.
There its values have the types of the schema; checks and import look at nothing else, so that
what was checked is what is imported, whatever happens to the source meanwhile.
"""

import difflib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from silotune.errors import DataError
from silotune.tables.casts import Cast, attribute_cast, cast, quoted
from silotune.tables.parts import CsvPart, DatabasePart, ParquetPart, Part, find_files
from silotune.tables.postgres import PostgresSource, is_postgres
from silotune.tables.problems import Problem, UnreadableError
from silotune.tables.schema import TABLES, Table
from silotune.tables.staged_table import FAILED, StagedTable, check_columns

__all__ = ["Progress", "Stage", "read_source"]

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(kw_only=True, slots=True)
class Stage:
    """All tables of a source in one connection, and what was wrong with reading them."""

    connection: duckdb.DuckDBPyConnection
    source: str
    tables: dict[str, StagedTable] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def collect(self, staged: StagedTable, name: str) -> Iterator[None]:
        """Note, instead of raising, that ``name`` cannot be read."""
        try:
            yield
        except UnreadableError as error:
            staged.complete = False
            self.problems.append(error.problem(name))


@contextmanager
def read_source(
    source: str | Path,
    *,
    schema: str | None = None,
    workdir: Path | None = None,
    progress: Progress | None = None,
    on_cancel: Callable[[Callable[[], None]], None] | None = None,
) -> Iterator[Stage]:
    """Read ``source`` and yield its tables; everything is removed when the block ends.

    Args:
        source: a folder with ``events.parquet`` or ``events.csv`` (or a folder ``events`` of
            such files) and so on, or ``postgresql://…``.
        schema: schema of the database's tables; None: named in the address, or its default.
        workdir: where the private working folder is made; it needs about the room of the
            source. None: the system's folder for temporary files.
        progress: called with (parts read, parts in all).
        on_cancel: given functions that stop the reading from another thread.

    Raises:
        DataError: the source as a whole cannot be read. What is wrong with single tables is
            collected in the stage.
    """
    if "://" in str(source) and not is_postgres(source):
        # Not shown: it may hold a password.
        raise DataError("Of databases only postgresql://user@host/database is read.")
    folder = _working_folder(workdir)
    try:
        with _connect(folder) as connection:
            if on_cancel is not None:
                on_cancel(connection.interrupt)
            if is_postgres(source):
                database = PostgresSource(str(source), schema=schema)
                if on_cancel is not None:
                    on_cancel(database.cancel)
                try:
                    stage = Stage(connection=connection, source=database.source)
                    _load(stage, _database_tables(stage, database), progress)
                finally:
                    database.close()
            else:
                stage = Stage(connection=connection, source=str(source))
                _load(stage, _file_tables(stage, Path(source)), progress)
            yield stage
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _working_folder(parent: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".silotune-", suffix=".partial", dir=parent))
    except PermissionError as error:
        raise DataError(
            f"{parent or tempfile.gettempdir()}: not writable for this user."
        ) from error


def _connect(folder: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        folder / "stage.duckdb",
        config={
            "temp_directory": str(folder / "spill"),
            # Otherwise an unknown function makes DuckDB look for an extension on the network.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    connection.execute("SET enable_progress_bar = false")
    # A time with a zone becomes UTC, one without is UTC.
    connection.execute("SET TimeZone = 'UTC'")
    # The file is removed next: tidying it up on closing would be for nothing.
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    return connection


def _file_tables(stage: Stage, folder: Path) -> list[StagedTable]:
    if not folder.is_dir():
        what = "is a file; name the folder that holds it" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}.")
    tables = []
    for table in TABLES:
        staged = StagedTable(table=table, file=table.name)
        with stage.collect(staged, table.name):
            files = find_files(folder, table)
            if files is None:
                continue
            staged.file = files[0]
            for path in files[1]:
                name = str(path.relative_to(folder))
                with stage.collect(staged, name):
                    staged.parts.append(_open_file(stage.connection, name, path, table))
        tables.append(staged)
    return tables


def _open_file(connection: duckdb.DuckDBPyConnection, name: str, path: Path, table: Table) -> Part:
    if path.suffix == ".parquet":
        return ParquetPart(connection, name, path)
    return CsvPart(connection, name, path, table)


def _database_tables(stage: Stage, database: PostgresSource) -> list[StagedTable]:
    tables = []
    for table in TABLES:
        staged = StagedTable(table=table, file=f"{database.schema}.{table.name}")
        with stage.collect(staged, staged.file):
            part = DatabasePart(stage.connection, database, table)
            if part.columns:
                staged.parts.append(part)
            elif table.required:
                near = difflib.get_close_matches(table.name, database.tables(), n=1)
                hint = f"Is it '{near[0]}'? Make a view of the name." if near else "Make a view."
                raise UnreadableError(f"is missing: no table or view '{table.name}'", hint)
            else:
                continue
        tables.append(staged)
    return tables


def _load(stage: Stage, tables: list[StagedTable], progress: Progress | None) -> None:
    done, total = 0, sum(len(staged.parts) for staged in tables)
    for staged in tables:
        stage.tables[staged.table.name] = staged
        with stage.collect(staged, staged.file):
            stage.problems += check_columns(staged)
            _create(stage.connection, staged)
            for part in staged.parts:
                with stage.collect(staged, part.name):
                    rows = part.load(_insert(staged, part))
                    staged.read.append(part)
                    staged.starts.append(staged.rows)
                    staged.rows += rows
                done += 1
                if progress is not None:
                    progress(done, total)


def _create(connection: duckdb.DuckDBPyConnection, staged: StagedTable) -> None:
    columns = [f"{quoted(c.name)} {c.sql_type}" for c in staged.table.columns]
    columns += [f"{quoted(name)} VARCHAR" for name in staged.attributes]
    columns += [
        f"{quoted(c.name + FAILED)} VARCHAR" for c in staged.table.columns if c.kind != "text"
    ]
    connection.execute(f"CREATE TABLE {staged.table.name} ({', '.join(columns)})")


def _insert(staged: StagedTable, part: Part) -> str:
    casts: dict[str, Cast | None] = {}
    for column in staged.table.columns:
        usable = column.name in part.columns and column.name in staged.present
        casts[column.name] = cast(column, part.columns[column.name]) if usable else None
    for name in staged.attributes:
        casts[name] = attribute_cast(name) if name in part.columns else None
    values = {name: found.value for name, found in casts.items() if found}
    values |= {name + FAILED: c.failed for name, c in casts.items() if c and c.failed}
    values = values or {staged.table.names[0]: "NULL"}  # nothing usable; the rows still count
    names, expressions = ", ".join(map(quoted, values)), ", ".join(values.values())
    return f"INSERT INTO {staged.table.name} ({names}) SELECT {expressions} FROM"
