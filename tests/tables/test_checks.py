import datetime as dt
import json
from pathlib import Path

import pytest

from silotune.errors import DataError
from silotune.tables.checks import check
from silotune.tables.importer import import_tables
from silotune.tables.rules import row_rules
from silotune.tables.schema import TABLES
from silotune.tables.staged_table import StagedTable


def errors(source, **options):
    return [str(p) for p in check(source, **options).of("error")]


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


BROKEN = [
    # table, row, values (SQL), file's message in Parquet; {p} is the row's place.
    ("events", 7, {"user_id": "NULL"}, "column 'user_id' has 1 empty value ({p}). Fill or drop"),
    ("events", 7, {"user_id": "' '"}, "column 'user_id' has 1 empty value ({p})."),
    ("events", 7, {"item_id": "''"}, "column 'item_id' has 1 empty value ({p})."),
    ("items", 3, {"title": "NULL"}, "column 'title' has 1 empty value ({p})."),
    ("events", 7, {"kind": "'bought'"}, "column 'kind' has 1 unknown value ({p}: 'bought'). Known"),
    (
        "events",
        7,
        {"time": "TIMESTAMP '2999-01-01'"},
        "column 'time' has 1 value in the future ({p}: '2999-01-01 00:00:00'). Times are UTC",
    ),
    (
        "events",
        1,
        {"time": "TIMESTAMP '1970-01-01'"},
        "column 'time' has 1 value before 1990 ({p}: '1970-01-01 00:00:00'). Such times",
    ),
    (
        "events",
        7,
        {"quantity": "-1"},
        "column 'quantity' has 1 negative value ({p}: '-1.0'). Leave",
    ),
    ("events", 7, {"price": "-0.5"}, "column 'price' has 1 negative value ({p}: '-0.5'). Leave"),
    ("events", 7, {"discount": "-1"}, "column 'discount' has 1 negative value ({p}: '-1.0')."),
    ("events", 7, {"discount": "4"}, "column 'discount' has 1 value above 'price' ({p}: '4.0')."),
    (
        "events",
        7,
        {"price": "'nan'::DOUBLE"},
        "column 'price' has 1 infinite or NaN value ({p}: 'nan'). Leave unknown values empty.",
    ),
    ("events", 7, {"quantity": "'inf'::DOUBLE"}, "has 1 infinite or NaN value ({p}: 'inf')."),
    ("events", 7, {"discount": "'-inf'::DOUBLE"}, "has 1 infinite or NaN value ({p}: '-inf')."),
    (
        "events",
        7,
        {"item_id": "'item-9'"},
        "column 'item_id' has 1 value that items.{kind} lacks ({p}: 'item-9'). Add the items",
    ),
    (
        "promotions",
        2,
        {"item_id": "'item-9'"},
        "column 'item_id' has 1 value that items.{kind} lacks ({p}: 'item-9'). Add the items",
    ),
    (
        "items",
        3,
        {"item_id": "'item-0'"},
        "column 'item_id' has 1 value that an earlier row has already ({p}: 'item-0'). Keep one",
    ),
    (
        "users",
        3,
        {"user_id": "'user-0'"},
        "column 'user_id' has 1 value that an earlier row has already ({p}). Keep one row of each.",
    ),
    (
        "promotions",
        2,
        {"end": "start"},
        "column 'end' has 1 value not later than 'start' ({p}: '2024-01-02 00:00:00'). It is",
    ),
    (
        "promotions",
        2,
        {"end": "'infinity'::TIMESTAMP"},
        "column 'end' has 1 value after the year 9999 ({p}). For a promotion without an end",
    ),
    (
        "promotions",
        2,
        {"item_id": "NULL"},
        "has 1 row with neither 'item_id' nor 'category' ({p}). Say what is promoted",
    ),
    (
        "promotions",
        1,
        {"item_id": "'item-1'"},
        "has 1 row with both 'item_id' and 'category' ({p}). Keep one",
    ),
    ("promotions", 2, {"depth": "25"}, "column 'depth' has 1 value outside 0 to 1 ({p}: '25.0')."),
    (
        "promotions",
        2,
        {"depth": "-0.1"},
        "column 'depth' has 1 value outside 0 to 1 ({p}: '-0.1').",
    ),
]


@pytest.mark.parametrize(("table", "number", "values", "message"), BROKEN)
def test_a_broken_row_of_a_parquet_file_is_named_and_nothing_is_imported(
    shop, row, table, number, values, message
):
    shop.tables[table] = row(table, number, **values)
    source = shop.write("parquet")
    with pytest.raises(DataError, match=r"\n\d errors? in .*; nothing was imported\.$") as error:
        import_tables(source, shop.folder / "out" / "silo", name="shop", nominal_users=5)
    expected = message.format(p=f"at row {number}", kind="parquet")
    found = [t for t in str(error.value).split("\n") if t.startswith(f"{table}.parquet: ")]
    assert any(expected in text for text in found), found
    assert [path.name for path in shop.folder.iterdir()] == ["source"]


@pytest.mark.parametrize(("table", "number", "values", "message"), BROKEN)
def test_a_broken_row_of_a_csv_file_is_named_with_its_line(
    shop, row, table, number, values, message
):
    shop.tables[table] = row(table, number, **values)
    found = [t for t in errors(shop.write("csv")) if t.startswith(f"{table}.csv: ")]
    expected = message.format(p=f"at row {number}, line {number + 1}", kind="csv")
    assert any(expected in text for text in found), found


WRONG_TYPES = [
    ("events", "time", "'31.05.2024'", "other than times ({p}: '31.05.2024'). Write them as 2024"),
    ("events", "time", "'2024-02-30'", "other than times ({p}: '2024-02-30')."),
    ("events", "price", "'3,99'", "other than numbers ({p}: '3,99'). Write them with a decimal"),
    ("promotions", "depth", "'20%'", "other than numbers ({p}: '20%')."),
]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize(("table", "column", "value", "message"), WRONG_TYPES)
def test_text_that_is_no_number_or_time_is_shown(shop, row, kind, table, column, value, message):
    texts = f'"{column}"::VARCHAR AS "{column}"'
    good = f"SELECT * REPLACE ({texts}) FROM ({row(table, 0, **{column: 'NULL'})})"
    shop.tables[table] = (
        f'SELECT * REPLACE (CASE WHEN n IN (2, 3) THEN {value} ELSE "{column}" END AS '
        f'"{column}") FROM (SELECT *, row_number() OVER () AS n FROM ({good})) ORDER BY n'
    )
    shop.tables[table] = f"SELECT * EXCLUDE (n) FROM ({shop.tables[table]})"
    place = "first at row 2" + (", line 3" if kind == "csv" else "")
    expected = f"{table}.{kind}: column '{column}' has 2 values {message.format(p=place)}"
    found = errors(shop.write(kind))
    assert len(found) == 1, found
    assert found[0].startswith(expected)


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
    found = errors(shop.write())
    assert found[0].startswith(f"{table}.parquet: column '{column}' {message}")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_column_is_named_with_the_one_that_may_be_meant(shop, kind):
    shop.tables["events"] = f"SELECT * RENAME (user_id AS User_ID) FROM ({shop.tables['events']})"
    shop.tables["items"] = f"SELECT * EXCLUDE (category) FROM ({shop.tables['items']})"
    assert errors(shop.write(kind)) == [
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
            "kind, time, visit_id, quantity, price, discount."
        ),
    ]
    assert "age group" in report.tables["users"].empties


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("table", ["events", "items", "promotions", "users"])
def test_an_empty_table_is_an_error(shop, kind, table):
    shop.tables[table] = f"SELECT * FROM ({shop.tables[table]}) WHERE false"
    found = errors(shop.write(kind))
    assert any(text.startswith(f"{table}.{kind}: has no rows. ") for text in found), found


def test_the_guide_lists_every_error_of_a_row():
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for table in TABLES:
        for rule in row_rules(StagedTable(table=table, file="x", present=list(table.names))):
            phrase = rule.message.replace("{n}", "*n*").replace("{s}", "s")
            assert phrase in guide, phrase


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
