"""A small shop in every kind of source."""

from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from silotune.errors import DataError
from silotune.tables.checks import check
from silotune.tables.importer import import_tables
from silotune.tables.staging import sql_path
from tests.tables.journey import journey, store  # noqa: F401  # fixtures

SHOP = {
    "events": """
        SELECT 'user-' || i % 5 AS user_id, 'item-' || i % 4 AS item_id,
            CASE WHEN i % 3 = 0 THEN 'purchase' ELSE 'view' END AS kind,
            TIMESTAMP '2024-01-01 08:30:00.25' + to_hours(i) AS time,
            CASE WHEN i % 2 = 0 THEN 'visit-' || i // 2 END AS visit_id,
            CASE WHEN i % 3 = 0 THEN 1.0 + i % 2 END AS quantity,
            CASE WHEN i % 3 = 0 THEN 3.99 END AS price,
            CASE WHEN i % 3 = 0 THEN 0.1 * (i % 4) END AS discount
        FROM range(12) r(i)""",
    "items": """
        SELECT 'item-' || i AS item_id, 'Tea "No. ' || i || '", loose' AS title,
            'Drinks > Tea' AS category, CASE WHEN i > 0 THEN 'Ünal' END AS brand, '100 g' AS size
        FROM range(4) r(i)""",
    "promotions": """
        SELECT CASE WHEN i > 0 THEN 'item-' || i END AS item_id,
            CASE WHEN i = 0 THEN 'Drinks' END AS category,
            TIMESTAMP '2024-01-01' + to_days(i::INTEGER) AS start,
            TIMESTAMP '2024-01-08' + to_days(i::INTEGER) AS "end",
            'shelf' AS placement, 'display' AS mechanic, 0.25 AS depth
        FROM range(3) r(i)""",
    "users": """
        SELECT 'user-' || i AS user_id, 'group ' || i % 2 AS "age group" FROM range(5) r(i)""",
}


def _row(table, number, **values):
    """Return the SQL of a shop's table whose row ``number``, from 1, has ``values`` (SQL)."""
    shop = f"(SELECT *, row_number() OVER () AS n FROM ({SHOP[table]}))"
    replaced = ", ".join(
        f'CASE WHEN n = {number} THEN {value} ELSE "{name}" END AS "{name}"'
        for name, value in values.items()
    )
    return f"SELECT * EXCLUDE (n) REPLACE ({replaced}) FROM {shop} ORDER BY n"


@dataclass
class Shop:
    folder: Path
    tables: dict[str, str] = field(default_factory=lambda: dict(SHOP))

    def write(self, kind="parquet", name="source"):
        """Write the tables as files of ``kind`` and return their folder."""
        folder = self.folder / name
        folder.mkdir()
        for table, query in self.tables.items():
            self.file(folder / f"{table}.{kind}", query)
        return folder

    def file(self, path, query):
        with duckdb.connect() as con:
            con.execute(f"COPY ({query}) TO {sql_path(path)} (FORMAT {path.suffix[1:]})")
        return path

    def errors(self, kind="parquet"):
        """Write the tables and return what a check calls errors of them."""
        return [str(p) for p in check(self.write(kind)).of("error")]

    def assert_refused(self, source, *messages):
        """Importing ``source`` fails with exactly these errors and leaves nothing behind."""
        with pytest.raises(DataError) as error:
            import_tables(source, self.folder / "silo", name="shop", nominal_users=5)
        lines = str(error.value).split("\n")
        assert len(lines) == len(messages) + 1, lines
        for line, message in zip(lines, messages, strict=False):
            assert message in line
        assert lines[-1].endswith("; nothing was imported.")
        assert [path.name for path in self.folder.iterdir()] == ["source"]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
def row():
    return _row
