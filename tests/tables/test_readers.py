import codecs
import os

import duckdb
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


def assert_refused(shop, source, *messages):
    """Importing ``source`` fails with exactly these errors and leaves nothing behind."""
    with pytest.raises(DataError) as error:
        import_tables(source, shop.folder / "silo", name="shop", nominal_users=5)
    lines = str(error.value).split("\n")
    assert len(lines) == len(messages) + 1, lines
    for line, message in zip(lines, messages, strict=False):
        assert message in line
    assert lines[-1].endswith("; nothing was imported.")
    assert [path.name for path in shop.folder.iterdir()] == ["source"]


# Files and folders


@pytest.mark.parametrize("table", ["events", "items", "promotions"])
def test_a_missing_file_is_named(shop, table):
    source = shop.write()
    (source / f"{table}.parquet").unlink()
    expected = (
        f"{table}: is missing: no {table}.parquet, {table}.csv or folder {table}/. Export it."
    )
    assert_refused(shop, source, expected)


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
    assert_refused(shop, source, expected)


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
    assert_refused(
        shop,
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


# Parquet


def test_a_truncated_parquet_file_is_refused(shop):
    source = shop.write()
    content = (source / "events.parquet").read_bytes()
    (source / "events.parquet").write_bytes(content[:-100])
    assert_refused(
        shop, source, "events.parquet: cannot be read as Parquet. It is cut off or damaged: export"
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
    assert_refused(
        shop, source, "items.parquet: cannot be read as Parquet. It is cut off or damaged"
    )


def test_a_file_that_is_no_parquet_at_all_is_refused(shop):
    source = shop.write()
    (source / "users.parquet").write_text("user_id\n")
    assert_refused(shop, source, "users.parquet: cannot be read as Parquet.")


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


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimiters_and_line_endings_are_found_out(shop, delimiter, ending):
    source = shop.write("csv")
    lines = [
        ["item_id", "title", "category", "price, net; per kg|l\t"],
        ["item-0", "Tea, black; or | green", "Drinks", ""],
        ["item-1", 'Tea "No. 1"\nin two lines', "Drinks", "1"],
        ["item-2", "Täe", "Drinks", "1"],
        ["item-3", "Tea", "Drinks", "1"],
    ]
    fields = [[f'"{f.replace(chr(34), chr(34) * 2)}"' for f in line] for line in lines]
    text = ending.join(delimiter.join(line) for line in fields)
    (source / "items.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    with read_source(source) as stage:
        found = stage.connection.execute(stage.tables["items"].query).fetchall()
    assert [row[:2] for row in found] == [tuple(line[:2]) for line in lines[1:]]


def test_line_numbers_count_line_breaks_in_values_and_blank_lines(shop):
    source = shop.write("csv")
    (source / "items.csv").write_text(
        'item_id,title,category\nitem-0,"a\nb\nc",Drinks\n\nitem-1,Tea,\n,Tea,Drinks\nitem-2,a,Drinks\n'
        "item-3,a,Drinks\n"
    )
    assert errors(source)[:2] == [
        "items.csv: column 'item_id' has 1 empty value (at row 3, line 7). Fill or drop them.",
        "items.csv: column 'category' has 1 empty value (at row 2, line 6). Fill or drop them.",
    ]


def test_blank_lines_of_a_single_column_are_empty_values(shop):
    source = shop.write("csv")
    (source / "users.csv").write_text("user_id\nuser-0\n\nuser-1\n")
    assert errors(source) == [
        "users.csv: column 'user_id' has 1 empty value (at row 2, line 3). Fill or drop them."
    ]


HEAD = b"item_id,title,category\n"
TEA = b"item-0,Tea,Drinks\n"
LONG = b"x" * 3_000_000
MALFORMED = [
    (HEAD + b"item-0,T\xe4e,Drinks\n", "is not UTF-8 text (at line 2). Save it as UTF-8, for"),
    (HEAD.decode().encode("utf-16"), "is UTF-16 text. Save it as UTF-8, the only encoding"),
    (HEAD + b"item-0,T\xc3", "ends within a character (at line 2). Export it again."),
    (b"", "is empty. Its first line must hold the names of the columns."),
    (b"\n\n", "has none of the columns item_id, title, category, brand, size in its first line. "),
    (TEA, "has none of the columns item_id, title, category, brand, size in its first line. The"),
    (b"item_id,title,category,\n", "has no name for column 4 in its first line. Give every"),
    (
        b"item_id,title,category,Title\n",
        "has two columns 'title' and 'Title', which cannot be told apart. Rename or drop one",
    ),
    (
        HEAD + TEA + b"item-1,Tea\nitem-2\n",
        "has 2 rows with fewer fields than the header (first at line 3). Put fields that hold",
    ),
    (
        HEAD + b'\nitem-0,"a\nb",Drinks\nitem-1,Tea,Drinks,3\n',
        "has 1 row with more fields than the header (at line 5). Put fields that hold the",
    ),
    (HEAD + TEA + b'item-1,"Tea,Drinks\n', "has a row whose quotes do not match (at line 3). Put"),
    (HEAD + b'item-0,"Te"a,Drinks\n', "has a row whose quotes do not match (at line 2). Put"),
    (HEAD + b'item-0,"' + LONG + b'",Drinks\n', "has a row whose quotes do not match (at line 2)."),
    (HEAD + b"item-0," + LONG + b",Drinks\n", "has 1 row of more than 2 MB (at line 2). Put"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED, ids=[m[1][:30] for m in MALFORMED])
def test_a_malformed_csv_file_is_refused(shop, content, message):
    source = shop.write("csv")
    (source / "items.csv").write_bytes(content)
    assert_refused(shop, source, f"items.csv: {message}")


def test_wrong_encoding_is_found_past_the_first_megabyte(shop):
    source = shop.write("csv")
    line = "item-{},Tée,Drinks\n"
    content = "item_id,title,category\n" + "".join(line.format(i) for i in range(90_000))
    (source / "items.csv").write_bytes(content.encode() + line.format(0).encode("latin-1"))
    assert errors(source) == [
        (
            "items.csv: is not UTF-8 text (at line 90002). Save it as UTF-8, for instance with "
            "`iconv -f WINDOWS-1252 -t UTF-8`."
        )
    ]


def test_offsets_become_utc_and_their_absence_means_utc(shop):
    source = shop.write("csv")
    times = {
        "2024-01-31T23:30:00": "2024-01-31 23:30:00",
        "2024-01-31T23:30:00Z": "2024-01-31 23:30:00",
        "2024-01-31 23:30:00.5+02:00": "2024-01-31 21:30:00.5",
        " 2024-01-31 ": "2024-01-31 00:00:00",
    }
    lines = [f"user-1,item-1,view,{time}" for time in times]
    (source / "events.csv").write_text("\n".join(["user_id,item_id,kind,time", *lines]))
    found = rows(source, "events", "CAST(time AS VARCHAR)")
    assert [row[0] for row in found] == list(times.values())


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


# PostgreSQL


@pytest.fixture
def database(postgres_uri, shop):
    """Put the shop's tables into a schema of their own; returns its address and a connection."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres_uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA shop")
        for table, query in shop.tables.items():
            with duckdb.connect() as duck:
                values = duck.sql(query).to_arrow_table()
            cursor.adbc_ingest(table, values, db_schema_name="shop")
        yield f"{postgres_uri}&schema=shop", cursor
        cursor.execute("DROP SCHEMA shop CASCADE")


def test_a_database_is_checked_like_files(database):
    uri, cursor = database
    cursor.execute("UPDATE shop.events SET kind = 'x' WHERE user_id = 'user-3'")
    cursor.execute("ALTER TABLE shop.items RENAME title TO titel")
    cursor.execute("ALTER TABLE shop.promotions RENAME TO promos")
    cursor.execute("DELETE FROM shop.users")
    found = errors(uri)
    assert (
        "shop.promotions: is missing: no table or view 'promotions'. Is it 'promos'? Make a view"
        in (found[0])
    )
    assert found[1:3] == [
        "shop.items: column 'title' is missing. Is it 'titel'? Rename that.",
        "shop.users: has no rows. Fill it, or leave it out.",
    ]
    assert found[3].startswith("shop.events: column 'kind' has 2 unknown values (first at row ")


def test_types_of_a_database_become_those_of_the_schema(database):
    uri, cursor = database
    cursor.execute("DROP TABLE shop.events")
    cursor.execute("CREATE DOMAIN shop.id AS char(8)")
    cursor.execute("CREATE TYPE shop.what AS ENUM ('view', 'cart')")
    cursor.execute(
        "CREATE TABLE shop.events AS SELECT 17::bigint AS user_id, 'item-1'::shop.id AS item_id, "
        "'view'::shop.what AS kind, '2024-01-31 23:30:00+02'::timestamptz AS time, "
        "gen_random_uuid() AS visit_id, 1.10::numeric(10, 2) AS price, 2::smallint AS quantity, "
        "0.5::real AS discount"
    )
    values = (
        "user_id, item_id, kind, CAST(time AS VARCHAR), length(visit_id), price, quantity, discount"
    )
    assert rows(uri, "events", values) == [
        ("17", "item-1", "view", "2024-01-31 21:30:00", 36, 1.1, 2.0, 0.5)
    ]
    assert errors(uri) == []


def test_types_of_a_database_that_cannot_be_meant_are_refused(database):
    uri, cursor = database
    cursor.execute("ALTER TABLE shop.events ALTER price TYPE money USING price::numeric::money")
    cursor.execute("ALTER TABLE shop.items ALTER brand TYPE text[] USING ARRAY[brand]")
    cursor.execute("UPDATE shop.promotions SET start = '-infinity' WHERE item_id IS NULL")
    found = errors(uri)
    assert "shop.events: column 'price' is of type money; it must be a number." in found[0]
    assert "shop.items: column 'brand' is of type _text; it must be text." in found[1]
    assert "shop.promotions: column 'start' has 1 value " in found[2]


def test_a_table_that_cannot_be_read_hides_no_other(database):
    uri, cursor = database
    cursor.execute("DROP TABLE shop.items")
    cursor.execute(
        "CREATE VIEW shop.items AS SELECT 'item-' || i AS item_id, 'Drinks' AS category, "
        "(1 / (5000 - i))::text AS title FROM generate_series(1, 100000) i"
    )
    cursor.execute("UPDATE shop.promotions SET depth = 2")
    found = errors(uri)
    assert len(found) == 2, found
    assert found[0].startswith("shop.items: cannot be read (division by zero). See that")
    assert found[1].startswith("shop.promotions: column 'depth' has 3 values outside 0 to 1")


def test_the_schema_may_be_an_option_and_need_not_exist(database, postgres_uri):
    assert errors(postgres_uri, schema="shop") == []
    assert [text.split(":")[0] for text in errors(postgres_uri, schema="nothing")] == [
        "nothing.events",
        "nothing.items",
        "nothing.promotions",
    ]
    assert errors(postgres_uri)[0].startswith("public.events: is missing")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://shop:{}@127.0.0.1:1/db",
        "postgresql://shop:{}@127.0.0.1:1",
        "postgresql://shop@127.0.0.1:1/db?password={}",
        "postgresql://shop:{}@/db?host=/nowhere",
        "postgresql://shop:{}@127.0.0.1:1/db?colour=red",
        "postgres://shop:{}@127.0.0.1:x/db",
    ],
)
@pytest.mark.parametrize(
    "password",
    [
        "hunter2",
        "p%40ss%3Fhunter2",
        "hunter2@x",
        "a/hunter2",
        "?hunter2",
        "#hunter2",
        "[hunter2",
        "%hunter2",
    ],
)
def test_a_password_never_appears(uri, password):
    with pytest.raises(DataError) as error:
        check(uri.format(password))
    text = str(error.value)
    assert "hunter2" not in text
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_no_other_database_is_read_and_its_password_not_shown():
    for scheme in ("mysql", "POSTGRESQL"):
        with pytest.raises(DataError, match=r"^Of databases only postgresql://user@host/database"):
            check(f"{scheme}://shop:hunter2@localhost/db")


def test_a_malformed_address_says_how_to_write_it():
    with pytest.raises(DataError, match="with %40, %3A, %2F, %23 and %3F for"):
        check("postgresql://shop:pass@word/2@host/db")
