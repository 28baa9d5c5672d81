"""The silo folder: a merchant's tables on disk, with hashed user ids and the key beside them.

```
silo.toml            name, declared number of users, schema version (public)
user.key             32 random bytes, mode 0600; never leaves the silo
events.parquet       ordered by user_id, time; without ratings
items.parquet        ordered by item_id
promotions.parquet   ordered by start
users.parquet        optional
ratings.parquet      where there are any: ordered by user_id, time
```

Every column of `silotune.tables.schema.STORED` is present in every silo, empty where the merchant
has none. A folder appears whole or not at all.
"""

import itertools
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from silotune.config import config, from_toml
from silotune.errors import ConfigError, DataError
from silotune.tables.keyed_hash import KEY_BYTES, hash_parameters, hash_sql
from silotune.tables.ratings import ratings_apart
from silotune.tables.schema import EVENTS, ITEMS, PROMOTIONS, RATINGS, STORED, TABLES, USERS, Table
from silotune.tables.staging import sql_path, staged_folder, sync, write_private

__all__ = [
    "SCHEMA_VERSION",
    "SiloFolder",
    "SiloInfo",
    "list_silos",
    "write_silo",
]

SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ARROW_TYPES = {"text": "string", "number": "double", "time": "timestamp[us]"}

# All columns take part, so that the same rows give the same file.
_ORDER = {
    EVENTS.name: "user_id, time, visit_id, item_id, kind, quantity, price, discount",
    ITEMS.name: "item_id",
    PROMOTIONS.name: 'start, item_id, category, "end", placement, mechanic, depth',
    USERS.name: "user_id",
    RATINGS.name: "user_id, time, item_id, rating",
}


@config
class SiloInfo:
    """What a silo says about itself. Public: nothing here is counted from its rows."""

    name: str
    """Letters, digits, '-', '_' and '.', at most 64, the first one a letter or digit."""
    nominal_users: int
    """Number of users the merchant declares; normalises its updates. Public, deliberately rough."""
    schema_version: int = SCHEMA_VERSION
    """Version of the folder's layout."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name is {self.name!r}; use letters, digits, '-', '_' and '.', at most 64, "
                "beginning with a letter or digit."
            )
        if self.nominal_users <= 0:
            raise ConfigError(f"nominal_users is {self.nominal_users}; it must be > 0.")
        if self.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"schema_version is {self.schema_version}; this silotune reads version "
                f"{SCHEMA_VERSION}. Import the merchant's tables again."
            )


def write_silo(
    connection: duckdb.DuckDBPyConnection,
    sources: Mapping[str, str],
    out: Path,
    *,
    name: str,
    nominal_users: int,
    key: bytes | None = None,
) -> SiloInfo:
    """Write the tables that ``sources`` yields as the silo folder ``out`` and return its info.

    User ids are replaced by keyed hashes (`keyed_hash`), visit ids likewise, since a merchant's
    visit ids often contain the customer's; where a visit id is empty, the user's day is the visit.
    Rows are not checked against the schema beyond types and empty values: readers do that.

    Args:
        connection: where the queries run; its memory limit and threads hold.
        sources: table name to a query yielding the table's columns, with the merchant's own ids.
        out: folder to make, mode 0700.
        name: public name of the silo.
        nominal_users: number of users the merchant declares, > 0. Public.
        key: 32 bytes; None draws a fresh key. The same key gives the same ids.

    Raises:
        ConfigError: ``name`` or ``nominal_users`` is refused.
        DataError: ``out`` exists, a table or column is missing, or a value has the wrong type.
    """
    info = SiloInfo(name=name, nominal_users=nominal_users)
    key = secrets.token_bytes(KEY_BYTES) if key is None else key
    if len(key) != KEY_BYTES:
        raise DataError(f"The user key has {len(key)} bytes; it must have {KEY_BYTES}.")
    unknown = set(sources) - {table.name for table in TABLES}
    if unknown:
        known = ", ".join(table.name for table in TABLES)
        raise DataError(f"'{min(unknown)}' is no table; known: {known}.")
    sources = ratings_apart(connection, sources)
    with staged_folder(out) as stage:
        for table in STORED:
            if table.name in sources:
                _write_table(connection, table, sources[table.name], stage, key)
            elif table.required:
                raise DataError(f"Table '{table.name}' is missing; it is required.")
        write_private(stage / "user.key", key)
        write_private(stage / "silo.toml", _toml(info).encode())
    return info


def _write_table(
    connection: duckdb.DuckDBPyConnection, table: Table, query: str, stage: Path, key: bytes
) -> None:
    path = stage / f"{table.name}.parquet"
    select = _select(connection, table, query)
    hashes = "user_id" in table.names
    try:
        connection.execute(
            f"COPY (SELECT * FROM ({select}) ORDER BY {_ORDER[table.name]}) "  # noqa: S608
            f"TO {sql_path(path)} (FORMAT parquet, COMPRESSION zstd)",
            hash_parameters(key) if hashes else None,
        )
    except duckdb.ConversionException as error:
        raise DataError(f"{table.name}: {error}. Nothing was written.") from error
    _refuse_empty_values(table, path)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    sync(path)


def _select(connection: duckdb.DuckDBPyConnection, table: Table, query: str) -> str:
    """Return the SELECT that yields all columns of ``table`` in order, with hashed ids."""
    types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {query}").fetchall()}
    extra = [name for name in types if name not in table.names]
    if extra and not table.extra_text_columns:
        known = ", ".join(table.names)
        raise DataError(f"{table.name}: unknown column '{extra[0]}'; known columns: {known}.")
    parts = []
    for column in table.columns:
        if column.name not in types and column.required:
            raise DataError(f"{table.name}: column '{column.name}' is missing; it is required.")
        if types.get(column.name) == "TIMESTAMP WITH TIME ZONE":
            raise DataError(f"{table.name}: column '{column.name}' has a zone; convert it to UTC.")
        value = f'"{column.name}"' if column.name in types else "NULL"
        value = f"CAST({value} AS {column.sql_type})"
        parts.append(f'{_hashed(column.name, value)} AS "{column.name}"')
    parts += [f'CAST("{name}" AS VARCHAR) AS "{name}"' for name in extra]
    return f"SELECT {', '.join(parts)} FROM ({query}) AS source"  # noqa: S608


def _hashed(column: str, value: str) -> str:
    if column == "user_id":
        return hash_sql(value)
    if column == "visit_id":
        # The prefixes keep a visit's hash from ever being a user's.
        day = "'day:' || CAST(user_id AS VARCHAR) || ':' || CAST(CAST(time AS DATE) AS VARCHAR)"
        return hash_sql(f"coalesce('visit:' || {value}, {day})")
    return value


def _refuse_empty_values(table: Table, path: Path) -> None:
    # The file's own statistics: no second pass over the rows.
    metadata = pq.read_metadata(path)
    for index, column in enumerate(table.columns):
        groups = (metadata.row_group(g).column(index) for g in range(metadata.num_row_groups))
        empty = sum(chunk.statistics.null_count for chunk in groups)
        if column.required and empty:
            raise DataError(
                f"{table.name}: column '{column.name}' has {empty} empty values. "
                "Fill or drop them; nothing was written."
            )


def _toml(info: SiloInfo) -> str:
    return (
        f'name = "{info.name}"\n'
        f"nominal_users = {info.nominal_users}\n"
        f"schema_version = {info.schema_version}\n"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SiloFolder:
    """A silo folder that was found whole."""

    path: Path
    info: SiloInfo

    @classmethod
    def open(cls, path: Path) -> "SiloFolder":
        """Return the silo at ``path``.

        Raises:
            DataError: no such folder, or a file or column is missing or damaged; names it.
            ConfigError: ``silo.toml`` is not valid.
        """
        if not path.is_dir():
            raise DataError(f"{path}: no such folder.")
        if not (path / "silo.toml").is_file():
            raise DataError(f"{path}: has no silo.toml, so it is no silo folder.")
        silo = cls(path=path, info=from_toml(SiloInfo, path / "silo.toml"))
        for table in STORED:
            if table.required or silo.has(table):
                _check_file(table, path / f"{table.name}.parquet")
        return silo

    def has(self, table: Table) -> bool:
        """Whether the silo holds ``table``."""
        return (self.path / f"{table.name}.parquet").is_file()

    @property
    def has_users(self) -> bool:
        """Whether the silo knows attributes of its users."""
        return self.has(USERS)

    def connect(
        self, *, threads: int | None = None, memory_limit: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Return an in-memory connection with one view per table of the silo.

        Work that does not fit in memory spills into the silo's own folder, nowhere else.

        Args:
            threads: None: as many as the machine has cores.
            memory_limit: as DuckDB writes it, "2GiB"; None: DuckDB's default, 80% of the machine.
        """
        spill = self.path / f".spill-{os.getpid()}-{secrets.token_hex(4)}"
        settings: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": str(spill),
            # Otherwise an unknown function makes DuckDB look for an extension on the network.
            "autoinstall_known_extensions": False,
        }
        if threads is not None:
            settings["threads"] = threads
        if memory_limit is not None:
            settings["memory_limit"] = memory_limit
        connection = duckdb.connect(":memory:", config=settings)
        # DuckDB draws its own over ours, and into logs, once a query takes two seconds.
        connection.execute("SET enable_progress_bar = false")
        for table in STORED:
            if self.has(table):
                # DuckDB reads '*', '?' and '[' in a path as a pattern unless they are bracketed.
                path = re.sub(r"([*?\[])", r"[\1]", str(self.path.resolve()))
                file = sql_path(Path(path) / f"{table.name}.parquet")
                connection.execute(f"CREATE VIEW {table.name} AS FROM read_parquet({file})")
        return connection


def _check_file(table: Table, path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing. Import the merchant's tables again.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}). Import the tables again.") from error
    for column in table.columns:
        if column.name not in schema.names:
            raise DataError(f"{path}: column '{column.name}' is missing.")
        found, wanted = str(schema.field(column.name).type), _ARROW_TYPES[column.kind]
        if found != wanted:
            raise DataError(f"{path}: column '{column.name}' is {found}; it must be {wanted}.")


def list_silos(folder: Path) -> list[SiloFolder]:
    """Return the silos that lie directly in ``folder``, by name.

    Raises:
        DataError: no such folder, no silo in it, a damaged one, or two of the same name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    # A name that begins with a dot is a silo still being written.
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    silos = [SiloFolder.open(p) for p in paths if (p / "silo.toml").is_file()]
    silos.sort(key=lambda silo: silo.info.name)
    if not silos:
        raise DataError(f"{folder}: holds no silo folder (a folder with a silo.toml).")
    for one, other in itertools.pairwise(silos):
        if one.info.name == other.info.name:
            raise DataError(f"{one.path} and {other.path} have the same name '{one.info.name}'.")
    return silos
