"""Ratings: events of a merchant, apart from what customers did in a silo."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from silotune.tables.as_of import SiloAsOf, SiloOfUsers
from silotune.tables.checks import check
from silotune.tables.importer import import_tables
from silotune.tables.keyed_hash import hash_id
from silotune.tables.ratings import seen
from silotune.tables.schema import RATINGS
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tables.synthetic_events import simulate
from silotune.tables.synthetic_ratings import rate, worth
from silotune.tables.synthetic_world import (
    generator,
    make_catalogue,
    make_merchant,
    people_of,
)

KEY = bytes(32)
NOON = dt.datetime.fromisoformat("2024-02-01T12:00")
# Two customers of the shop and one who does nothing but rate; noon of a day.
RATED = """
SELECT 'user-' || i AS user_id, 'item-1' AS item_id, 'rate' AS kind,
    TIMESTAMP '2024-02-01 12:00' + to_days(i::INTEGER) AS time, i + 0.5 AS rating
FROM (VALUES (1), (2), (9)) r(i)"""


def with_ratings(shop, query=RATED):
    return f"SELECT * FROM ({shop.tables['events']}) UNION ALL BY NAME {query}"


def bring_in(source, out):
    import_tables(source, out, name="shop", nominal_users=5, key=KEY)
    return SiloFolder.open(out)


def rows(silo, query):
    with silo.connect() as connection:
        return connection.execute(query).fetchall()


def test_import_keeps_ratings_apart_and_the_rest_as_it_is_without_them(shop):
    plain = bring_in(shop.write(), shop.folder / "plain")
    shop.tables["events"] = with_ratings(shop)
    for kind in ("csv", "parquet"):
        silo = bring_in(shop.write(kind, name=f"{kind} source"), shop.folder / kind)
        # Visits, purchases and histories of every other task are made of this file.
        events = (s.path / "events.parquet" for s in (silo, plain))
        assert len({path.read_bytes() for path in events}) == 1
        assert rows(silo, "FROM ratings ORDER BY time") == [
            (hash_id(f"user-{i}", key=KEY), "item-1", NOON + dt.timedelta(days=i), i + 0.5)
            for i in (1, 2, 9)
        ]
        assert (silo.path / "ratings.parquet").stat().st_mode & 0o777 == 0o600


def test_a_silo_without_ratings_is_as_it_was_before_there_were_any(shop):
    plain = bring_in(shop.write(), shop.folder / "plain")
    shop.tables["events"] = f"SELECT *, NULL::DOUBLE AS rating FROM ({shop.tables['events']})"
    empty = bring_in(shop.write(name="empty column"), shop.folder / "empty")
    for silo in (plain, empty):
        assert not silo.has(RATINGS)
        files = sorted(p.name for p in silo.path.iterdir())
        assert "ratings.parquet" not in files
        assert len(rows(silo, seen(silo))) == len(rows(silo, "FROM events"))
    path = "events.parquet"
    assert (plain.path / path).read_bytes() == (empty.path / path).read_bytes()


def test_a_shop_that_only_has_ratings_can_be_imported(shop):
    shop.tables["events"] = RATED
    silo = bring_in(shop.write(), shop.folder / "a")
    assert rows(silo, "FROM events") == []
    assert len(rows(silo, seen(silo))) == len(rows(silo, "FROM ratings")) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            RATED.replace("i + 0.5", "CASE WHEN i = 2 THEN 4.5 END"),
            "column 'rating' is empty in 2 rows of kind 'rate' (first at row 13",
        ),
        (
            RATED.replace(", i + 0.5 AS rating", ""),
            "column 'rating' is empty in 3 rows of kind 'rate' (first at row 13",
        ),
        (
            RATED.replace("'rate'", "'purchase'"),
            "column 'rating' has 3 values in rows of another kind than 'rate' (first at row 13",
        ),
        (
            RATED.replace("i + 0.5", "CASE WHEN i = 2 THEN 'good' ELSE '4' END"),
            "column 'rating' has 1 value other than numbers (at row 14",
        ),
        (
            RATED.replace("i + 0.5", "CASE WHEN i = 2 THEN 'nan'::DOUBLE ELSE 4 END"),
            "column 'rating' has 1 infinite or NaN value (at row 14",
        ),
    ],
)
def test_what_is_wrong_with_a_rating_is_said_once(shop, kind, query, message):
    shop.tables["events"] = with_ratings(shop, query)
    (found,) = shop.errors(kind)
    assert found.startswith(f"events.{kind}: {message}")


def test_ratings_of_any_scale_pass_the_check(shop):
    shop.tables["events"] = with_ratings(shop, RATED.replace("i + 0.5", "i - 5"))
    report = check(shop.write())
    assert report.ok
    assert report.users == 6


def test_a_part_of_a_silo_has_its_part_of_the_ratings(shop):
    shop.tables["events"] = with_ratings(shop)
    silo = bring_in(shop.write(), shop.folder / "a")
    before = SiloAsOf.of(silo, NOON + dt.timedelta(days=2), visit=True)
    assert [r[3] for r in rows(before, "FROM ratings")] == [1.5]
    user = hash_id("user-2", key=KEY)
    some = SiloOfUsers.of(silo, [user])
    assert [r[3] for r in rows(some, "FROM ratings")] == [2.5]
    assert {u for (u,) in rows(some, f"SELECT user_id FROM ({seen(some)})")} == {user}
    assert rows(SiloAsOf.of(some, before.date), "FROM ratings") == []


SMALL = SyntheticConfig(merchants=2, users_per_merchant=40, items=60, categories=10, weeks=8)


def test_made_up_ratings_leave_the_other_events_as_they_are(tmp_path):
    for name, rated in (("without", 0.0), ("with", 0.5)):
        generate(replace(SMALL, rated=rated), tmp_path / name, seeded_keys=True)
    silos = list(zip(list_silos(tmp_path / "without"), list_silos(tmp_path / "with"), strict=True))
    for without, silo in silos:
        assert not without.has(RATINGS)
        for table in ("events", "items", "promotions", "users"):
            found = [pq.read_table(s.path / f"{table}.parquet") for s in (without, silo)]
            assert found[0].equals(found[1])
        bought = "kind IN ('purchase', 'redeem')"
        [(share, low, high, whole)] = rows(
            silo,
            f"SELECT count(*) / (SELECT count(*) FROM events WHERE {bought}), min(rating), "
            "max(rating), count(*) FILTER (rating = round(rating)) / count(*) FROM ratings",
        )
        # Of the last week's some would come after the end.
        assert 0.4 < share < 0.5
        assert (high, whole) == (5.0, 1.0)
        assert 1 <= low < 3
        unbought = (
            f"FROM ratings r WHERE NOT EXISTS (FROM events e WHERE {bought} AND e.user_id = "
            "r.user_id AND e.item_id = r.item_id AND e.time BETWEEN r.time - INTERVAL 7 DAY AND "
            "r.time - INTERVAL 1 DAY)"
        )
        assert rows(silo, unbought) == []
    assert len(silos) == 2


def test_stars_tell_what_an_item_is_worth_to_a_person():
    settings = SyntheticConfig(merchants=1, users_per_merchant=500, rated=1.0)
    catalogue = make_catalogue(settings)
    people = next(people_of(settings, catalogue, 0))
    merchant = make_merchant(settings, catalogue, 0)
    done = simulate(settings, catalogue, merchant, people, generator(settings, "test"))
    given, stars = rate(settings, catalogue, people, done, generator(settings, "stars"))
    assert np.corrcoef(worth(settings, catalogue, people, given), stars)[0, 1] > 0.75
    # Of the quality that a title tells, and of the person's own.
    loved = people.favourite_UC[given.user_R, catalogue.category_I[given.item_R]]
    own = loved == catalogue.brand_I[given.item_R]
    assert stars[own].mean() > stars[~own].mean() + 0.2
