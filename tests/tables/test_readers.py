import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from silotune.errors import DataError
from silotune.tables.checks import check
from silotune.tables.importer import import_tables
from silotune.tables.readers import read_source


def errors(source, **options):
    return [str(p) for p in check(source, **options).of("error")]


def rows(source, table, columns="*", **options):
    with read_source(source, **options) as stage:
        assert stage.problems == []
        query = f"SELECT {columns} FROM ({stage.tables[table].query})"
        return stage.connection.execute(query).fetchall()


# Files and folders


@pytest.mark.parametrize("table", ["events", "items", "promotions"])
def test_a_missing_file_is_named(shop, table):
    source = shop.write()
    (source / f"{table}.parquet").unlink()
    expected = (
        f"{table}: is missing: no {table}.parquet, {table}.csv or folder {table}/. Export it."
    )
    shop.assert_refused(source, expected)


def test_a_missing_file_is_named_with_the_one_that_may_be_meant(shop):
    source = shop.write("csv")
    (source / "promotions.csv").rename(source / "Promotion.CSV")
    assert "Is it 'Promotion.CSV'? Rename that." in errors(source)[0]


def test_users_may_be_missing(shop):
    del shop.tables["users"]
    assert check(shop.write()).problems == ()


def test_a_table_that_is_there_twice_is_refused(shop):
    source = shop.write("csv")
    shop.file(source / "items.parquet", shop.tables["items"])
    expected = "items: is there more than once: items.parquet and items.csv. Leave one of them."
    shop.assert_refused(source, expected)


def test_a_source_that_is_no_folder_is_refused(shop):
    source = shop.write("csv")
    with pytest.raises(DataError, match=r"nowhere: no such folder\.$"):
        check(shop.folder / "nowhere")
    with pytest.raises(DataError, match="is a file; name the folder that holds it"):
        check(source / "items.csv")


def test_part_files_are_one_table_and_errors_name_the_part(shop, row):
    whole = check(shop.write())
    source = shop.write(name="parts")
    (source / "events.parquet").unlink()
    (source / "events").mkdir()
    events = "SELECT * FROM ({}) ORDER BY time LIMIT 5 OFFSET {}"
    for number, offset in enumerate((0, 5, 10)):
        kind = "csv" if number == 1 else "parquet"
        part = events.format(shop.tables["events"], offset)
        shop.file(source / "events" / f"part-{number}.{kind}", part)
    (source / "events" / "_SUCCESS").touch()
    report = check(source)
    assert report.problems == ()
    assert report.tables["events"].file == "events/"
    assert report.tables["events"].rows == whole.tables["events"].rows
    assert report.tables["events"].empties == whole.tables["events"].empties
    broken = events.format(row("events", 8, kind="'x'"), 5)
    shop.file(source / "events" / "part-1.csv", broken)
    assert (
        "events/part-1.csv: column 'kind' has 1 unknown value (at row 3, line 4: 'x')"
        in (errors(source)[0])
    )


def test_a_folder_of_parts_holds_nothing_else(shop):
    source = shop.write()
    (source / "events.parquet").unlink()
    (source / "events").mkdir()
    assert "events: is a folder without .parquet or .csv files." in errors(source)[0]
    (source / "events" / "readme.txt").touch()
    assert "events: holds 'readme.txt', which is neither" in errors(source)[0]


def test_a_part_that_cannot_be_read_hides_no_other_and_blames_no_one_else(shop):
    source = shop.write()
    (source / "items.parquet").unlink()
    (source / "items").mkdir()
    (source / "items" / "1.csv").write_text("item_id,title,category\nitem-0,Tea\nitem-1,Tea\n")
    (source / "items" / "2.csv").write_text("item_id,title,category\nitem-2,,Drinks\n")
    shop.assert_refused(
        source,
        "items/1.csv: has 2 rows with fewer fields than the header (first at line 2).",
        "items/2.csv: column 'title' has 1 empty value (at row 1, line 2).",
    )


def test_a_path_may_hold_characters_that_mean_patterns(shop):
    folder = shop.folder / "it's [a] *?"
    folder.mkdir()
    shop.folder = folder
    for kind in ("csv", "parquet"):
        assert check(shop.write(kind, name=f"{kind}[1]")).problems == ()


def test_rows_of_a_large_file_keep_their_order(shop):
    source = shop.write("csv")
    query = (
        "SELECT 'user-' || i AS user_id, 'item-1' AS item_id, 'view' AS kind, "
        "TIMESTAMP '2024-01-01' + to_seconds(i) AS time FROM range(400_000) r(i)"
    )
    for kind in ("csv", "parquet"):
        for file in source.glob("events.*"):
            file.unlink()
        shop.file(source / f"events.{kind}", query)
        with read_source(source) as stage:
            wrong = "SELECT count(*) FROM events WHERE user_id <> 'user-' || rowid"
            assert stage.connection.execute(wrong).fetchall() == [(0,)]


def test_working_files_are_private_and_vanish(shop):
    with read_source(shop.write(), workdir=shop.folder):
        hidden = [path for path in shop.folder.iterdir() if path.name.startswith(".")]
        assert len(hidden) == 1
        assert hidden[0].stat().st_mode & 0o777 == 0o700
    assert [path.name for path in shop.folder.iterdir()] == ["source"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written_to_is_named(shop):
    source = shop.write()
    shop.folder.chmod(0o500)
    try:
        with pytest.raises(DataError, match=r": not writable for this user\.$"):
            import_tables(source, shop.folder / "silo", name="shop", nominal_users=5)
    finally:
        shop.folder.chmod(0o700)


# Parquet


def test_a_truncated_parquet_file_is_refused(shop):
    source = shop.write()
    content = (source / "events.parquet").read_bytes()
    (source / "events.parquet").write_bytes(content[:-100])
    shop.assert_refused(
        source, "events.parquet: cannot be read as Parquet. It is cut off or damaged: export"
    )


def test_a_parquet_file_with_a_damaged_page_is_refused(shop):
    shop.tables["items"] = (
        "SELECT 'item-' || i AS item_id, hash(i)::VARCHAR AS title, 'Drinks' AS category "
        "FROM range(2000) r(i)"
    )
    source = shop.write()
    content = bytearray((source / "items.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (source / "items.parquet").write_bytes(content)
    shop.assert_refused(
        source, "items.parquet: cannot be read as Parquet. It is cut off or damaged"
    )


def test_a_file_that_is_no_parquet_at_all_is_refused(shop):
    source = shop.write()
    (source / "users.parquet").write_text("user_id\n")
    shop.assert_refused(source, "users.parquet: cannot be read as Parquet.")


def test_numbers_and_zones_of_parquet_become_those_of_the_schema(shop):
    source = shop.write()
    events = pa.table(
        {
            "user_id": pa.array([1, 2], pa.int64()),
            "item_id": pa.array(["item-1", "item-2"]).dictionary_encode(),
            "kind": ["view", "view"],
            "time": pa.array([0, 10**18], pa.timestamp("ns", tz="Europe/Berlin")),
            "price": pa.array([1, 2], pa.decimal128(10, 2)),
            "quantity": pa.array([1, None], pa.int8()),
        }
    )
    events = events.set_column(
        3, "time", pa.array([1704067200] * 2, pa.timestamp("s", tz="-03:00"))
    )
    pq.write_table(events, source / "events.parquet")
    values = "user_id, item_id, CAST(time AS VARCHAR), price, quantity, visit_id"
    assert rows(source, "events", values) == [
        ("1", "item-1", "2024-01-01 00:00:00", 1.0, 1.0, None),
        ("2", "item-2", "2024-01-01 00:00:00", 2.0, None, None),
    ]
