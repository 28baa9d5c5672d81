import duckdb
import pytest

from silotune.errors import DataError
from silotune.tables.checks import check
from silotune.tables.readers import read_source


def errors(source, **options):
    return [str(p) for p in check(source, **options).of("error")]


def rows(source, table, columns="*", **options):
    with read_source(source, **options) as stage:
        assert stage.problems == []
        query = f"SELECT {columns} FROM ({stage.tables[table].query})"
        return stage.connection.execute(query).fetchall()


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
