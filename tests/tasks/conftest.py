"""A shop's events, offers and catalogue as short rows, written as a silo."""

import dataclasses
import datetime as dt
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pytest

from silotune.tables.keyed_hash import hash_id
from silotune.tables.silo_folder import SiloFolder, write_silo
from silotune.tasks.promotion_response import PromotionResponse

KEY = bytes(32)
DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
TASK = PromotionResponse(first=START, split=START + 60 * DAY, last=START + 120 * DAY)
EVERYTHING = dataclasses.replace(
    TASK, train_visits=999, test_visits=999, positives=999, negatives=999, test_negatives=999
)
_TEXT, _NUMBER, _TIME = pa.string(), pa.float64(), pa.timestamp("us")
COLUMNS = {
    "events": {
        "user_id": _TEXT,
        "item_id": _TEXT,
        "kind": _TEXT,
        "time": _TIME,
        "visit_id": _TEXT,
        "quantity": _NUMBER,
        "price": _NUMBER,
        "discount": _NUMBER,
    },
    "items": dict.fromkeys(("item_id", "title", "category", "brand", "size"), _TEXT),
    "promotions": {
        "item_id": _TEXT,
        "category": _TEXT,
        "start": _TIME,
        "end": _TIME,
        "placement": _TEXT,
        "mechanic": _TEXT,
        "depth": _NUMBER,
    },
}
ITEMS = [
    ("milk-1", "Whole milk", "Dairy > Milk > Whole", "Farm", "1 l"),
    ("milk-2", "Whole milk", "Dairy > Milk > Whole", "Store", "1 l"),
    ("skim", "Skim milk", "Dairy > Milk > Skim", "Farm", "1 l"),
    ("bread", "White bread", "Bakery > Bread > White > Sliced", None, None),
    ("tea", "Tea", "Drinks", "Leaf", None),
]


def on(day, hour=0):
    return START + day * DAY + dt.timedelta(hours=hour)


def bought(user, item, day, visit, *, price=2.0, discount=0.0, quantity=1.0, kind="purchase"):
    return (user, item, kind, on(day), visit, quantity, price, discount)


def seen(user, item, day, visit, kind="view"):
    return (user, item, kind, on(day), visit, None, None, None)


def promoted(item, start, end, *, category=None, placement="shelf", mechanic="display", depth=0.2):
    return (item, category, on(start), on(end), placement, mechanic, depth)


def table(name, rows):
    schema = pa.schema(COLUMNS[name])
    dicts = [dict(zip(schema.names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(dicts, schema=schema)


@pytest.fixture(scope="session")
def silo_of(tmp_path_factory):
    """Return the silo that holds the rows; the key, and so every id, is always the same.

    ``campaigns`` is the table of users: what each of them was sent.
    """

    def write(events, promotions, items=ITEMS, campaigns=None):
        out = tmp_path_factory.mktemp("silo") / "shop"
        with duckdb.connect() as con:
            for name, rows in (("events", events), ("items", items), ("promotions", promotions)):
                con.register(name, rows if isinstance(rows, pa.Table) else table(name, rows))
            sources = {name: f"SELECT * FROM {name}" for name in COLUMNS}
            if campaigns is not None:
                people = pa.table({"user_id": [*campaigns], "campaigns": [*campaigns.values()]})
                con.register("people", people)
                sources["users"] = "SELECT * FROM people"
            write_silo(con, sources, out, name="shop", nominal_users=10, key=KEY)
        return SiloFolder.open(out)

    return write


def described(task, silo):
    """Return {(user, visit, offer): everything the example says} of a silo's examples."""
    rows, examples = task._rows(silo), task.build(silo)
    assert len(rows) == len(examples)
    out = {}
    for i, row in enumerate(rows):
        key = (row["user_id"], row["visit_id"], row["category"], row["placement"])
        assert key not in out
        out[key] = {
            "text": examples.text[i],
            "context": examples.context[i],
            "numeric": examples.numeric_EF[i].tobytes(),
            "label": examples.label_EK[i].tobytes(),
            "group": examples.group[i],
            "test": bool(examples.test_E[i]),
        }
    return out


def user(name):
    return hash_id(name, key=KEY)


def visit(name):
    return hash_id(f"visit:{name}", key=KEY)


@pytest.fixture(scope="session")
def shop(silo_of):
    """The functions of this file, the catalogue, and the task with and without its caps."""
    return SimpleNamespace(
        silo_of=silo_of,
        bought=bought,
        seen=seen,
        promoted=promoted,
        described=described,
        user=user,
        visit=visit,
        items=ITEMS,
        columns=COLUMNS,
        start=START,
        task=TASK,
        everything=EVERYTHING,
    )
