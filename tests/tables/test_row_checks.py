"""Every broken row of a source is named with its file, column and place."""

from pathlib import Path

import pytest

from silotune.errors import DataError
from silotune.tables.importer import import_tables
from silotune.tables.rules import row_rules
from silotune.tables.schema import TABLES
from silotune.tables.staged_table import StagedTable

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
    found = [t for t in shop.errors("csv") if t.startswith(f"{table}.csv: ")]
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
    found = shop.errors(kind)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_the_guide_lists_every_error_of_a_row():
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for table in TABLES:
        for rule in row_rules(StagedTable(table=table, file="x", present=list(table.names))):
            phrase = rule.message.replace("{n}", "*n*").replace("{s}", "s")
            assert phrase in guide, phrase
