"""What a check says of whole tables and columns, and what its report holds."""

import datetime as dt
import json

import pytest

from silotune.tables.checks import check


def test_a_good_shop_has_no_problems_and_is_counted(shop):
    report = check(shop.write())
    assert report.problems == ()
    assert report.ok
    rows = {name: table.rows for name, table in report.tables.items()}
    assert rows == {"events": 12, "items": 4, "promotions": 3, "users": 5}
    assert (report.users, report.items) == (5, 4)
    assert report.first_time == dt.datetime(2024, 1, 1, 8, 30, 0, 250_000)  # noqa: DTZ001
    assert report.last_time == dt.datetime(2024, 1, 1, 19, 30, 0, 250_000)  # noqa: DTZ001
    assert report.tables["events"].empties["price"] == 8
    assert report.tables["promotions"].empties["category"] == 2
    assert report.tables["users"].empties == {"user_id": 0, "age group": 0}
    report.raise_if_errors()


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        (
            "events",
            "user_id",
            "1.5::DOUBLE",
            "is of type DOUBLE; it must be text. Store it as text.",
        ),
        ("items", "item_id", "1.5::DOUBLE", "is of type DOUBLE; it must be text."),
        ("events", "time", "1700000000", "is of type INTEGER; it must be a time. Store it as a"),
        (
            "events",
            "price",
            "true",
            "is of type BOOLEAN; it must be a number. Store it as a number.",
        ),
        ("items", "category", "['a', 'b']", "is of type VARCHAR[]; it must be text."),
        ("items", "title", "'tea'::BLOB", "is of type BLOB; it must be text."),
    ],
)
def test_a_column_of_a_type_that_cannot_be_meant_is_refused(shop, table, column, value, message):
    shop.tables[table] = f'SELECT * REPLACE ({value} AS "{column}") FROM ({shop.tables[table]})'
    found = shop.errors()
    assert found[0].startswith(f"{table}.parquet: column '{column}' {message}")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_column_is_named_with_the_one_that_may_be_meant(shop, kind):
    shop.tables["events"] = f"SELECT * RENAME (user_id AS User_ID) FROM ({shop.tables['events']})"
    shop.tables["items"] = f"SELECT * EXCLUDE (category) FROM ({shop.tables['items']})"
    assert shop.errors(kind) == [
        f"events.{kind}: column 'user_id' is missing. Is it 'User_ID'? Rename that.",
        (
            f"items.{kind}: column 'category' is missing. Add it: path from wide to narrow, levels "
            "separated by ' > '."
        ),
    ]


def test_unknown_columns_are_warned_of_and_those_of_users_are_attributes(shop):
    shop.tables["events"] = (
        f"SELECT * EXCLUDE (price) RENAME (discount AS discnt), 1 AS shelf "
        f"FROM ({shop.tables['events']})"
    )
    report = check(shop.write())
    assert report.ok
    assert [str(p) for p in report.of("warning")] == [
        "events.parquet: column 'discnt' is not used. Is it 'discount'? Rename it.",
        (
            "events.parquet: column 'shelf' is not used. Columns of the table: user_id, item_id, "
            "kind, time, visit_id, quantity, price, discount, rating."
        ),
    ]
    assert "age group" in report.tables["users"].empties


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("table", ["events", "items", "promotions", "users"])
def test_an_empty_table_is_an_error(shop, kind, table):
    shop.tables[table] = f"SELECT * FROM ({shop.tables[table]}) WHERE false"
    found = shop.errors(kind)
    assert any(text.startswith(f"{table}.{kind}: has no rows. ") for text in found), found


def test_unsorted_times_are_a_note(shop):
    shop.tables["events"] = f"SELECT * FROM ({shop.tables['events']}) ORDER BY time DESC"
    report = check(shop.write("csv"))
    assert report.ok
    assert [str(p) for p in report.of("note")] == [
        (
            "events.csv: column 'time' has 11 values earlier than the row before (first at row 2, "
            "line 3). Nothing to do: events are sorted on import."
        )
    ]


def test_a_promoted_category_without_items_is_a_warning(shop, row):
    shop.tables["promotions"] = row("promotions", 1, category="'Drink'")
    report = check(shop.write())
    assert report.ok
    assert [p.message for p in report.problems] == [
        "has 1 value that no category in items.parquet begins with"
    ]


def test_planned_promotions_are_no_error(shop, row):
    shop.tables["promotions"] = row(
        "promotions", 2, start="TIMESTAMP '2999-01-01'", end="TIMESTAMP '9999-12-31'"
    )
    assert check(shop.write()).problems == ()


def test_all_problems_are_collected_and_counted(shop, row):
    shop.tables["events"] = row("events", 4, user_id="NULL", kind="'x'", price="-1")
    shop.tables["items"] = f"SELECT * REPLACE ('item-0' AS item_id) FROM ({shop.tables['items']})"
    report = check(shop.write())
    places = [(p.file, p.column, p.first_row, p.count) for p in report.of("error")]
    assert places == [
        ("events.parquet", "user_id", 4, 1),
        ("events.parquet", "kind", 4, 1),
        ("events.parquet", "price", 4, 1),
        ("events.parquet", "discount", 4, 1),
        ("events.parquet", "item_id", 2, 9),
        ("items.parquet", "item_id", 2, 3),
        ("promotions.parquet", "item_id", 2, 2),
    ]
    assert places == [
        (p.file, p.column, p.first_row, p.count) for p in check(report.source).of("error")
    ]


def test_no_message_shows_who_a_customer_is(shop, row):
    shop.tables["events"] = row("events", 3, user_id="'secret-1'", kind="'x'", item_id="NULL")
    shop.tables["users"] = row("users", 3, user_id="'user-0'", **{"age group": "'secret-2'"})
    report = check(shop.write("csv"))
    assert len(report.of("error")) == 3
    text = json.dumps(report.as_json())
    assert "secret" not in text
    assert "user-" not in text


def test_the_report_is_json(shop, row):
    shop.tables["events"] = row("events", 3, kind="'x'")
    values = json.loads(json.dumps(check(shop.write("csv")).as_json()))
    assert values["ok"] is False
    assert values["first_time"] == "2024-01-01T08:30:00.250000"
    problem = values["problems"][0]
    assert (problem["file"], problem["column"], problem["severity"]) == (
        "events.csv",
        "kind",
        "error",
    )
    assert (problem["first_row"], problem["first_line"], problem["sample"]) == (3, 4, "x")
