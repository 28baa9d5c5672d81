"""Ratings, which a merchant writes among the events and a silo folder keeps apart from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb

from silotune.tables.schema import EVENTS, RATE, RATINGS

if TYPE_CHECKING:
    from silotune.tables.silo_folder import SiloFolder

__all__ = ["ratings_apart", "seen"]


def ratings_apart(
    connection: duckdb.DuckDBPyConnection, sources: Mapping[str, str]
) -> dict[str, str]:
    """Return the queries of ``sources`` with ratings in one of their own, if there are any.

    A rating is given at home, days after: whatever counts what a customer did in the shop must
    not meet it.

    Args:
        connection: where the queries run.
        sources: table name to a query, as `silotune.tables.silo_folder.write_silo` takes them.
    """
    found, events = dict(sources), sources.get(EVENTS.name)
    if events is None:
        return found
    columns = {row[0] for row in connection.execute(f"DESCRIBE {events}").fetchall()}
    left_out = " EXCLUDE (rating)" if "rating" in columns else ""
    rated = f"FROM ({events}) WHERE kind = '{RATE}'"
    if "kind" in columns and connection.execute(f"SELECT 1 {rated} LIMIT 1").fetchall():
        rating = "rating" if left_out else "NULL AS rating"
        found[RATINGS.name] = f"SELECT user_id, item_id, time, {rating} {rated}"
        # A kind that is empty is refused where it is written.
        events = f"SELECT * FROM ({events}) WHERE kind IS DISTINCT FROM '{RATE}'"  # noqa: S608
    found[EVENTS.name] = f"SELECT *{left_out} FROM ({events})" if left_out else events  # noqa: S608
    return found


def seen(silo: "SiloFolder") -> str:
    """Return the SELECT of the user and the time of all that customers of ``silo`` did."""
    tables = (EVENTS, RATINGS) if silo.has(RATINGS) else (EVENTS,)
    return " UNION ALL ".join(f"SELECT user_id, time FROM {t.name}" for t in tables)  # noqa: S608
