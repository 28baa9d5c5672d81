"""A merchant's tables in PostgreSQL, read as Arrow batches in one snapshot.

The password never appears in a message: the address is taken apart here and put together again
well-formed, so that no piece of the password can pass for a host or a database.
"""

import contextlib
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

import pyarrow as pa

from silotune.errors import DataError
from silotune.tables.casts import quoted
from silotune.tables.problems import UnreadableError

__all__ = ["READ_REMEDY", "PostgresSource", "is_postgres"]

READ_REMEDY = "See that the connection holds and that its user may read the table."

_SCHEMES = ("postgresql://", "postgres://")

# PostgreSQL's type to DuckDB's, where the driver hands it over as such.
_NATIVE = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "FLOAT",
    "float8": "DOUBLE",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
}
# As text: the driver has no decimal type, and pads `char` to its length.
_AS_TEXT = {"text", "varchar", "bpchar", "citext", "name", "uuid", "numeric"}

_COLUMNS = """
    SELECT a.attname::text, CASE t.typtype WHEN 'e' THEN 'text' ELSE t.typname::text END
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_type declared ON declared.oid = a.atttypid
    JOIN pg_catalog.pg_type t
        ON t.oid = CASE declared.typtype WHEN 'd' THEN declared.typbasetype ELSE declared.oid END
    WHERE n.nspname = {schema} AND c.relname = {table} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
_TABLES = """
    SELECT c.relname::text FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = {schema} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_SESSION = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    # Otherwise a scan may begin in the middle of a large table, and row numbers with it.
    "SET LOCAL synchronize_seqscans = off",
    "SET LOCAL max_parallel_workers_per_gather = 0",
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL standard_conforming_strings = on",
)


def is_postgres(source: object) -> bool:
    """Whether ``source`` is the address of a PostgreSQL database."""
    return isinstance(source, str) and source.startswith(_SCHEMES)


class PostgresSource:
    """A connection that sees one state of the database until it is closed."""

    def __init__(self, uri: str, *, schema: str | None = None) -> None:
        """Connect.

        Args:
            uri: ``postgresql://user@host:port/database``, with libpq's parameters behind '?' and
                the additional parameter ``schema``.
            schema: where the tables are; None: the address's, or the connection's default.

        Raises:
            DataError: driver missing, address malformed, database not reachable.
        """
        address, self.source, in_uri, self._secrets = _take_apart(uri)
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError:
            raise DataError(
                "PostgreSQL needs two more packages; install them with "
                "`pip install 'silotune[postgres]'`."
            ) from None
        self._error = dbapi.Error
        self._stream: dbapi.Cursor | None = None
        try:
            self._connection = dbapi.connect(address)
        except self._error as error:
            raise DataError(f"{self.source}: {self.reason(error)}.") from None
        try:
            self._begin()
            self.schema = schema or in_uri or self._default_schema()
        except (self._error, UnreadableError) as error:
            self.close()
            raise DataError(f"{self.source}: {self.reason(error)}.") from None

    def columns(self, table: str) -> dict[str, str]:
        """Return name and DuckDB type of each column; empty: there is no such table.

        A type that has no counterpart keeps PostgreSQL's name.
        """
        query = _COLUMNS.format(schema=_literal(self.schema), table=_literal(table))
        found = {str(name): str(kind) for name, kind in self._rows(query)}
        return {
            name: _NATIVE.get(kind, "VARCHAR" if kind in _AS_TEXT else kind)
            for name, kind in found.items()
        }

    def tables(self) -> list[str]:
        """Return the names of the tables and views of the schema."""
        return [str(row[0]) for row in self._rows(_TABLES.format(schema=_literal(self.schema)))]

    def read(self, table: str, columns: Mapping[str, str]) -> pa.RecordBatchReader:
        """Return a stream of the rows; ``columns`` are from `columns`. Raises UnreadableError."""
        native = set(_NATIVE.values())
        selected = [
            quoted(name) if kind in native else f"{quoted(name)}::text AS {quoted(name)}"
            for name, kind in columns.items()
        ]
        self._close_stream()
        # Kept: a stream ends with its cursor.
        cursor = self._stream = self._connection.cursor()
        relation = f"{quoted(self.schema)}.{quoted(table)}"
        try:
            cursor.execute(f"SELECT {', '.join(selected)} FROM {relation}")  # noqa: S608 - quoted
            return cursor.fetch_record_batch()
        except self._error as error:
            self.recover()
            raise UnreadableError(f"cannot be read ({self.reason(error)})", READ_REMEDY) from None

    def recover(self) -> None:
        """Make the connection usable again after a statement failed.

        What follows sees a later state of the database, which does no harm: with one table
        unreadable nothing is imported.
        """
        self._close_stream()
        with contextlib.suppress(self._error):
            self._connection.rollback()
            self._begin()

    def cancel(self) -> None:
        """Stop what the database is doing for this connection; from any thread."""
        self._connection.adbc_cancel()

    def close(self) -> None:
        """Give the connection back."""
        self._close_stream()
        self._connection.close()

    def reason(self, error: BaseException) -> str:
        """Return the first line of an error's text, without the password."""
        text = str(error).strip().split("\n")[0]
        # Before these words stands only who passed the message on.
        text = re.sub(r"^.*(\[libpq\]|ERROR:|FATAL:)\s+", "", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text.rstrip(".")

    def _begin(self) -> None:
        with self._connection.cursor() as cursor:
            for statement in _SESSION:
                cursor.execute(statement)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _default_schema(self) -> str:
        name = self._rows("SELECT current_schema()::text")[0][0]
        return str(name) if name is not None else "public"

    def _rows(self, query: str) -> list[tuple[object, ...]]:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(query)
                return list(cursor.fetchall())
        except self._error as error:
            self.recover()
            raise UnreadableError(f"cannot be read ({self.reason(error)})", READ_REMEDY) from None


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _take_apart(uri: str) -> tuple[str, str, str | None, list[str]]:
    """Return the address for the driver, the one to show, the schema, and what to hide."""
    scheme, _, rest = uri.partition("://")
    place = re.split("[/?]", rest, maxsplit=1)[0]
    path, _, query = rest[len(place) :].partition("?")
    # An '@' that belongs to a password would leave the rest of it to pass for something else.
    if "@" in path + query or "#" in uri:
        raise DataError(
            "The address of the database is malformed. Write postgresql://user@host/database, "
            "with %40, %3A, %2F, %23 and %3F for @, :, /, # and ? within a name or a password."
        )
    login, at, host = place.rpartition("@")
    user, _, password = login.partition(":")
    options = [option.partition("=")[::2] for option in query.split("&") if option]
    schema = next((unquote(value) for key, value in options if key == "schema"), None)
    shown = f"{scheme}://{user}{at}{host}{path}"
    hidden = {password, *(value for key, value in options if key == "password")}
    hidden |= {unquote(secret) for secret in hidden}
    secret = ":" + quote(unquote(password), safe="") if password else ""
    passed = "&".join(f"{key}={value}" for key, value in options if key != "schema")
    address = f"{scheme}://{user}{secret}{at}{host}{path}{'?' if passed else ''}{passed}"
    return address, shown, schema, sorted(hidden - {""}, key=len, reverse=True)
