"""A silo as of a date: what is later is not there."""

import datetime as dt

import pytest

from silotune.errors import DataError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig, generate

DATE = dt.datetime.fromisoformat("2024-02-05T12:00")


@pytest.fixture(scope="module")
def silo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("silos") / "silos"
    generate(SyntheticConfig(merchants=1, users_per_merchant=20, weeks=10, seed=1), folder)
    return list_silos(folder)[0]


def rows(silo, query):
    with silo.connect() as connection:
        return connection.execute(query).fetchall()


def test_events_end_before_the_date_and_nothing_else_changes(silo):
    known = SiloAsOf.of(silo, DATE)
    everything = "SELECT * FROM events WHERE time < $$2024-02-05T12:00$$::TIMESTAMP ORDER BY ALL"
    assert rows(known, "SELECT * FROM events ORDER BY ALL") == rows(silo, everything)
    assert len(rows(silo, "FROM events")) > len(rows(known, "FROM events")) > 0
    for table in ("items", "promotions"):
        assert rows(known, f"FROM {table} ORDER BY ALL") == rows(silo, f"FROM {table} ORDER BY ALL")
    assert rows(SiloFolder.open(silo.path), "FROM events") == rows(silo, "FROM events")


def test_every_user_seen_before_visits_once_at_the_date(silo):
    known = SiloAsOf.of(silo, DATE, visit=True)
    seen = rows(silo, f"SELECT DISTINCT user_id FROM events WHERE time < TIMESTAMP '{DATE}'")
    at = rows(known, f"FROM events WHERE time = TIMESTAMP '{DATE}' ORDER BY user_id")
    assert [r[0] for r in at] == sorted(u for (u,) in seen)
    assert {r[1:] for r in at} == {(None, "view", DATE, "as-of", None, None, None)}


def test_a_date_with_a_zone_is_refused(silo):
    with pytest.raises(DataError, match="zone"):
        SiloAsOf.of(silo, DATE.replace(tzinfo=dt.UTC))
