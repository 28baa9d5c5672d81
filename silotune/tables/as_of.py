"""A silo as it stood at a moment: what happened later is not there to be read."""

import datetime as dt
from dataclasses import dataclass

import duckdb

from silotune.errors import DataError
from silotune.tables.silo_folder import SiloFolder

__all__ = ["SiloAsOf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SiloAsOf(SiloFolder):
    """A silo whose events end before ``date``; items, promotions and users are as they are."""

    date: dt.datetime
    """UTC, without zone. The first moment that is not known."""
    visit: bool = False
    """Whether every user seen before has one event at ``date``: a view of no item, in a visit of
    its own. It stands for the visit about which a task is asked."""

    @classmethod
    def of(cls, silo: SiloFolder, date: dt.datetime, *, visit: bool = False) -> "SiloAsOf":
        """Return ``silo`` as of ``date``. Raises DataError for a date with a zone."""
        if date.tzinfo is not None:
            raise DataError(f"{date} has a zone; leave it out: the tables are in UTC.")
        return cls(path=silo.path, info=silo.info, date=date, visit=visit)

    def connect(
        self, *, threads: int | None = None, memory_limit: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection as `SiloFolder.connect` does, with fewer events."""
        connection = SiloFolder.connect(self, threads=threads, memory_limit=memory_limit)
        connection.execute("ALTER VIEW events RENAME TO all_events")
        # A view takes no parameter; a date has no quote in it.
        moment = f"TIMESTAMP '{self.date.isoformat(sep=' ')}'"
        past = f"SELECT * FROM all_events WHERE time < {moment}"  # noqa: S608  # a date
        if self.visit:
            # By name: the columns that are not here are empty.
            columns = f"user_id, 'view' AS kind, {moment} AS time, 'as-of' AS visit_id"
            past += f" UNION ALL BY NAME SELECT DISTINCT {columns} FROM ({past})"  # noqa: S608
        connection.execute(f"CREATE VIEW events AS {past}")
        return connection
