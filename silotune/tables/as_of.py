"""A silo of which only a part is there to be read: until a moment, or of some customers."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from silotune.errors import DataError
from silotune.tables.schema import EVENTS, RATINGS, USERS
from silotune.tables.silo_folder import SiloFolder

__all__ = ["SiloAsOf", "SiloOfUsers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SiloAsOf(SiloFolder):
    """A silo whose events and ratings end before ``date``; items and users are as they are."""

    silo: SiloFolder
    """What it is a part of."""
    date: dt.datetime
    """UTC, without zone. The first moment that is not known."""
    visit: bool = False
    """Whether every user seen before has one event at ``date``: a view of no item, in a visit of
    its own. It stands for the visit about which a task is asked."""
    running: bool = False
    """Whether only the promotions that run at ``date`` are there."""

    @classmethod
    def of(
        cls, silo: SiloFolder, date: dt.datetime, *, visit: bool = False, running: bool = False
    ) -> "SiloAsOf":
        """Return ``silo`` as of ``date``. Raises DataError for a date with a zone."""
        if date.tzinfo is not None:
            raise DataError(f"{date} has a zone; leave it out: the tables are in UTC.")
        return cls(
            path=silo.path, info=silo.info, silo=silo, date=date, visit=visit, running=running
        )

    def connect(
        self, *, threads: int | None = None, memory_limit: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection as `SiloFolder.connect` does, with fewer events."""
        connection = self.silo.connect(threads=threads, memory_limit=memory_limit)
        connection.execute("ALTER VIEW events RENAME TO all_events")
        # A view takes no parameter; a date has no quote in it.
        moment = f"TIMESTAMP '{self.date.isoformat(sep=' ')}'"
        past = f"SELECT * FROM all_events WHERE time < {moment}"  # noqa: S608  # a date
        if self.visit:
            # By name: the columns that are not here are empty.
            columns = f"user_id, 'view' AS kind, {moment} AS time, 'as-of' AS visit_id"
            past += f" UNION ALL BY NAME SELECT DISTINCT {columns} FROM ({past})"  # noqa: S608
        connection.execute(f"CREATE VIEW events AS {past}")
        if self.silo.has(RATINGS):
            connection.execute("ALTER VIEW ratings RENAME TO all_ratings")
            connection.execute(
                f"CREATE VIEW ratings AS SELECT * FROM all_ratings WHERE time < {moment}"  # noqa: S608
            )
        if self.running:
            connection.execute("ALTER VIEW promotions RENAME TO all_promotions")
            connection.execute(
                "CREATE VIEW promotions AS SELECT * FROM all_promotions "  # noqa: S608  # a date
                f'WHERE start <= {moment} AND {moment} < "end"'
            )
        return connection


@dataclass(frozen=True, kw_only=True, slots=True)
class SiloOfUsers(SiloFolder):
    """A silo with the rows of some of its users; items and promotions are as they are.

    No example reads another user's rows, so a task builds for these users the rows that it
    builds for them from the whole silo.
    """

    silo: SiloFolder
    """What it is a part of."""
    users: tuple[str, ...]
    """Keyed hashes, as in ``events``."""

    @classmethod
    def of(cls, silo: SiloFolder, users: Sequence[str]) -> "SiloOfUsers":
        """Return the part of ``silo`` that is of ``users``."""
        return cls(path=silo.path, info=silo.info, silo=silo, users=tuple(users))

    def connect(
        self, *, threads: int | None = None, memory_limit: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection as `SiloFolder.connect` does, with fewer users."""
        connection = self.silo.connect(threads=threads, memory_limit=memory_limit)
        connection.execute(
            "CREATE TABLE some_users AS SELECT DISTINCT unnest($1::VARCHAR[]) AS user_id",
            [list(self.users)],
        )
        # Bounds, since events lie ordered by user: what is outside them is not even read.
        low, high = (_quoted(found(self.users, default="")) for found in (min, max))
        for table in (EVENTS, RATINGS, USERS):
            if self.silo.has(table):
                name = table.name
                connection.execute(f"ALTER VIEW {name} RENAME TO {name}_of_all")
                connection.execute(
                    f"CREATE VIEW {name} AS SELECT * FROM {name}_of_all "  # noqa: S608
                    f"WHERE user_id BETWEEN {low} AND {high} "
                    "AND user_id IN (SELECT user_id FROM some_users)"
                )
        return connection


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
