import os
import stat
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from silotune.errors import ConfigError, DataError
from silotune.tables.keyed_hash import hash_id
from silotune.tables.schema import RATINGS, STORED
from silotune.tables.silo_folder import SiloFolder, SiloInfo, list_silos, write_silo

KEY = bytes(range(32))
EVENTS = """
SELECT 'ünal-' || i % 7 AS user_id, 'i' || i % 3 AS item_id, 'view' AS kind,
       TIMESTAMP '2024-01-01' + to_hours(i) AS time,
       CASE WHEN i % 2 = 0 THEN 'ünal-' || i % 7 || '/' || i END AS visit_id
FROM range(100) r(i)
"""
SOURCES = {
    "events": EVENTS,
    "items": "SELECT 'i' || i AS item_id, 'tea' AS title, 'drinks' AS category FROM range(3) r(i)",
    "promotions": "SELECT 'drinks' AS category, TIMESTAMP '2024-01-02' + to_days(-i::INTEGER) AS "
    "start, TIMESTAMP '2024-01-03' AS \"end\" FROM range(3) r(i)",
}
BAD_DEPTH = " UNION ALL BY NAME SELECT 'x' AS depth"
USERS = "SELECT DISTINCT user_id, 30 AS age FROM (" + EVENTS + ")"


@pytest.fixture
def con():
    with duckdb.connect() as connection:
        yield connection


def write(con, out, sources=SOURCES, **options):
    return write_silo(con, sources, out, **{"name": "shop", "nominal_users": 10} | options)


def test_a_silo_has_every_column_of_the_schema_in_its_type(con, tmp_path):
    info = write(con, tmp_path / "a", SOURCES | {"users": USERS})
    silo = SiloFolder.open(tmp_path / "a")
    assert silo.info == info == SiloInfo(name="shop", nominal_users=10)
    assert silo.has_users
    with silo.connect(threads=1, memory_limit="1GiB") as views:
        assert not silo.has(RATINGS)
        for table in (t for t in STORED if t is not RATINGS):
            found = {r[0]: r[1] for r in views.execute(f"DESCRIBE {table.name}").fetchall()}
            assert {c.name: c.sql_type for c in table.columns}.items() <= found.items()
        settings = "SELECT current_setting('threads'), current_setting('memory_limit')"
        assert views.execute(settings).fetchall() == [(1, "1.0 GiB")]
        assert views.execute("SELECT DISTINCT age FROM users").fetchall() == [("30",)]


def test_user_ids_are_hmac_sha256_under_the_key_file(con, tmp_path):
    write(con, tmp_path / "a", SOURCES | {"users": USERS})
    key = (tmp_path / "a" / "user.key").read_bytes()
    assert len(key) == 32
    expected = {hash_id(f"ünal-{i}", key=key) for i in range(7)}
    with SiloFolder.open(tmp_path / "a").connect() as views:
        for table in ("events", "users"):
            ids = views.execute(f"SELECT DISTINCT user_id FROM {table}").fetchall()
            assert {row[0] for row in ids} == expected


def test_no_raw_user_id_is_left_in_any_file(con, tmp_path):
    write(con, tmp_path / "a", SOURCES | {"users": USERS})
    for path in (tmp_path / "a").glob("*.parquet"):
        text = str(pq.read_table(path).to_pydict()).encode() + path.read_bytes()
        assert "ünal".encode() not in text


def test_the_key_is_readable_by_its_owner_alone_and_the_folder_closed(con, tmp_path):
    write(con, tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    for path in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_silos_draw_different_keys(con, tmp_path):
    for name in "ab":
        write(con, tmp_path / name)
    one, other = ((tmp_path / name / "user.key").read_bytes() for name in "ab")
    assert one != other


def test_the_same_rows_and_key_give_the_same_files(con, tmp_path):
    for name in "ab":
        write(con, tmp_path / name, key=KEY)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_empty_visit_is_the_users_day(con, tmp_path):
    sources = SOURCES | {"events": EVENTS.replace("i % 2 = 0", "false")}
    write(con, tmp_path / "a", sources)
    with SiloFolder.open(tmp_path / "a").connect() as views:
        days = "SELECT count(DISTINCT (user_id, time::DATE)), count(DISTINCT visit_id) FROM events"
        [(days, visits)] = views.execute(days).fetchall()
        [(nulls,)] = views.execute("SELECT count(*) - count(visit_id) FROM events").fetchall()
    assert days == visits
    assert nulls == 0


def test_given_visits_stay_as_distinct_as_they_were(con, tmp_path):
    write(con, tmp_path / "a", SOURCES | {"events": EVENTS.replace("i % 2 = 0", "true")})
    with SiloFolder.open(tmp_path / "a").connect() as views:
        count = views.execute("SELECT count(DISTINCT visit_id) FROM events").fetchall()
    assert count == [(100,)]


def test_events_lie_by_user_and_time_and_promotions_by_start(con, tmp_path):
    write(con, tmp_path / "a")
    events = pq.read_table(tmp_path / "a" / "events.parquet").to_pylist()
    keys = [(row["user_id"], row["time"]) for row in events]
    assert keys == sorted(keys)
    starts = pq.read_table(tmp_path / "a" / "promotions.parquet")["start"].to_pylist()
    assert starts == sorted(starts)


def test_an_existing_folder_is_refused_and_untouched(con, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write(con, tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"items": SOURCES["items"]}, "Table 'events' is missing"),
        (SOURCES | {"baskets": "SELECT 1"}, "'baskets' is no table"),
        (SOURCES | {"items": "SELECT 'i' AS item_id, 'c' AS category"}, "items: column 'title'"),
        (SOURCES | {"items": SOURCES["items"].replace("SELECT", "SELECT 1 AS colour,")}, "colour"),
        (SOURCES | {"items": SOURCES["items"].replace("'tea'", "NULL")}, "'title' has 3 empty"),
        (SOURCES | {"events": EVENTS.replace("'ünal-' || i % 7 AS", "NULL AS")}, "user_id"),
        (SOURCES | {"promotions": SOURCES["promotions"] + BAD_DEPTH}, "promotions: .*'x'"),
    ],
)
def test_a_failure_leaves_nothing(con, tmp_path, sources, message):
    with pytest.raises(DataError, match=message):
        write(con, tmp_path / "a", sources)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(con, tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(con, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-a", "ä", "a" * 65])
def test_a_name_that_is_no_safe_file_name_is_refused(name):
    with pytest.raises(ConfigError, match="name is"):
        SiloInfo(name=name, nominal_users=1)


@pytest.mark.parametrize("field", [{"nominal_users": 0}, {"schema_version": 2}])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        SiloInfo(**{"name": "a", "nominal_users": 1} | field)


def test_a_path_of_glob_characters_and_quotes_opens(con, tmp_path):
    out = tmp_path / "we[ir]d*?'x"
    write(con, out)
    write(con, tmp_path / "weid**'x", SOURCES | {"events": EVENTS + " LIMIT 1"}, name="other")
    with SiloFolder.open(out).connect() as views:
        assert views.execute("SELECT count(*) FROM events").fetchall() == [(100,)]


def test_what_is_missing_or_damaged_is_named(con, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        SiloFolder.open(tmp_path / "a")
    write(con, tmp_path / "a")
    items = tmp_path / "a" / "items.parquet"
    table = pq.read_table(items)
    pq.write_table(table.drop(["brand"]), items)
    with pytest.raises(DataError, match=r"items\.parquet: column 'brand' is missing"):
        SiloFolder.open(tmp_path / "a")
    pq.write_table(table.set_column(0, "item_id", pa.array([1, 2, 3])), items)
    with pytest.raises(DataError, match="column 'item_id' is int64; it must be string"):
        SiloFolder.open(tmp_path / "a")
    items.write_bytes(items.read_bytes()[:100])
    with pytest.raises(DataError, match=r"items\.parquet: damaged"):
        SiloFolder.open(tmp_path / "a")
    items.unlink()
    with pytest.raises(DataError, match=r"items\.parquet: missing"):
        SiloFolder.open(tmp_path / "a")
    (tmp_path / "a" / "silo.toml").write_text("nominal_users = 3\n")
    with pytest.raises(ConfigError, match="'name' is missing"):
        SiloFolder.open(tmp_path / "a")


def test_silos_are_listed_by_name_and_half_written_ones_skipped(con, tmp_path):
    for folder, name in (("x", "b"), ("y", "a"), (".z.partial", "c")):
        write(con, tmp_path / folder, name=name)
    (tmp_path / "notes").mkdir()
    assert [silo.info.name for silo in list_silos(tmp_path)] == ["a", "b"]
    write(con, tmp_path / "twin", name="a")
    with pytest.raises(DataError, match="same name 'a'"):
        list_silos(tmp_path)
    with pytest.raises(DataError, match="holds no silo"):
        list_silos(tmp_path / "notes")
    with pytest.raises(DataError, match="no such folder"):
        list_silos(Path("nowhere"))
