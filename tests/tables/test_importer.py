import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silotune.errors import ConfigError, DataError
from silotune.tables.importer import import_tables
from silotune.tables.keyed_hash import hash_id
from silotune.tables.schema import TABLES
from silotune.tables.silo_folder import SiloFolder

KEY = bytes(range(32))
LIMITED = """
import resource, sys
from silotune.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(main(sys.argv[1:]))
"""


def bring_in(source, out, **options):
    return import_tables(source, out, **{"name": "shop", "nominal_users": 5, "key": KEY} | options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_imported_silo_opens_and_hashes_its_users(shop):
    reports = []
    info = import_tables(
        shop.write(),
        shop.folder / "new" / "silo",
        name="shop",
        nominal_users=5,
        on_report=reports.append,
    )
    silo = SiloFolder.open(shop.folder / "new" / "silo")
    assert silo.info == info
    assert reports[0].ok
    with silo.connect() as views:
        rows = views.execute("SELECT user_id, price, discount FROM events").fetchall()
        users = views.execute('SELECT user_id, "age group" FROM users').fetchall()
    key = (silo.path / "user.key").read_bytes()
    ids = {hash_id(f"user-{i}", key=key): f"group {i % 2}" for i in range(5)}
    assert dict(users) == ids
    assert {row[0] for row in rows} == set(ids)
    assert sorted(row[2] for row in rows if row[1]) == [0.0, 0.1, 0.2, 0.3]


def test_parquet_csv_parts_and_postgres_give_the_same_silo(shop, postgres_uri):
    from adbc_driver_postgresql import dbapi

    parts = shop.write(name="parts")
    for table, query in shop.tables.items():
        (parts / f"{table}.parquet").unlink()
        (parts / table).mkdir()
        for half in range(2):
            rows = f"SELECT *, row_number() OVER () % 2 AS half FROM ({query})"
            part = f"SELECT * EXCLUDE (half) FROM ({rows}) WHERE half = {half}"
            shop.file(parts / table / f"{half}.{'csv' if half else 'parquet'}", part)
    uri = f"{postgres_uri}&schema=same"
    with dbapi.connect(postgres_uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA same")
        for table, query in shop.tables.items():
            with duckdb.connect() as duck:
                rows = duck.sql(query).to_arrow_table()
            cursor.adbc_ingest(table, rows, db_schema_name="same")
        sources = {"a": shop.write(), "b": shop.write("csv", name="csv"), "c": parts, "d": uri}
        for name, source in sources.items():
            bring_in(source, shop.folder / name)
        cursor.execute("DROP SCHEMA same CASCADE")
    first = contents(shop.folder / "a")
    assert set(first) == {"user.key", "silo.toml", *(f"{t.name}.parquet" for t in TABLES)}
    for name in sources:
        assert contents(shop.folder / name) == first


def test_the_order_of_the_source_does_not_matter(shop):
    bring_in(shop.write(), shop.folder / "a")
    for table, query in shop.tables.items():
        shop.tables[table] = f"SELECT * FROM ({query}) ORDER BY hash(COLUMNS(*)::VARCHAR)"
    bring_in(shop.write("csv", name="shuffled"), shop.folder / "b")
    assert contents(shop.folder / "a") == contents(shop.folder / "b")


def test_what_was_checked_is_imported_though_the_source_changes(shop, row):
    bring_in(shop.write(), shop.folder / "a")
    shop.tables["events"] = row("events", 3, kind="'x'")
    source = shop.folder / "source"

    def change(report):
        assert report.ok
        shop.file(source / "events.parquet", shop.tables["events"])

    bring_in(source, shop.folder / "b", on_report=change)
    assert contents(shop.folder / "a") == contents(shop.folder / "b")


def test_a_folder_that_exists_is_left_alone(shop):
    out = shop.folder / "silo"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(DataError, match=r"silo: exists already\. Name another folder or remove"):
        bring_in(shop.write(), out)
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("options", [{"name": "a b"}, {"nominal_users": 0}])
def test_a_refused_name_or_number_is_refused_before_reading(shop, options):
    with pytest.raises(ConfigError):
        bring_in(shop.folder / "nowhere", shop.folder / "silo", **options)


def test_progress_counts_the_parts(shop):
    steps = []
    bring_in(
        shop.write(), shop.folder / "a", progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def large(shop):
    shop.tables["events"] = (
        "SELECT hash(i)::VARCHAR AS user_id, 'item-' || i % 4 AS item_id, 'view' AS kind, "
        "TIMESTAMP '2020-01-01' + to_seconds(i) AS time FROM range(200_000) r(i)"
    )
    source = shop.write()
    return [
        "data",
        "import",
        str(source),
        str(shop.folder / "silo"),
        "--name=a",
        "--nominal-users=9",
    ]


def assert_disk_full(done, shop):
    assert done.returncode == 2, done.stderr
    assert "the disk is full or a quota is reached. Make room" in done.stderr
    assert done.stderr.endswith("; nothing was imported.\n")
    assert "Traceback" not in done.stderr
    assert [path.name for path in shop.folder.iterdir()] == ["source"]


def test_a_quota_leaves_nothing_behind(shop):
    command = [sys.executable, "-c", LIMITED, *large(shop)]
    assert_disk_full(subprocess.run(command, capture_output=True, text=True), shop)


def test_a_full_disk_leaves_nothing_behind(shop):
    if shutil.which("unshare") is None:
        pytest.skip("a small disk needs unshare")
    arguments = large(shop)
    disk = shop.folder / "disk"
    disk.mkdir()
    arguments[3] = str(disk / "silo")
    mount = f"mount -t tmpfs -o size=2m tmpfs '{disk}' || exit 77"
    script = f'{mount}; "$@"; code=$?; ls -A "{disk}"; exit $code'
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-m",
            "silotune.cli",
            *arguments,
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this user may not mount a small disk")
    assert done.stdout == ""
    disk.rmdir()
    assert_disk_full(done, shop)


@settings(max_examples=40)
@given(
    body=st.lists(st.sampled_from(["a", '"', '""', ",", "\n", "\r\n", " ", '"q"', '"q,\n"', "é"]))
)
def test_a_csv_file_is_read_as_another_parser_reads_it_or_refused(body):
    from silotune.tables.readers import read_source

    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        (source / "users.csv").write_text("user_id,x\n" + "".join(body), newline="")
        with read_source(source) as stage:
            if any(problem.file == "users.csv" for problem in stage.problems):
                return
            found = stage.connection.execute(
                "SELECT user_id, x FROM users ORDER BY rowid"
            ).fetchall()
        with (source / "users.csv").open(newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if row][1:]
        kept = [tuple(f.strip(" ") or None for f in row[:2]) for row in rows]
        assert [tuple(v and v.strip(" ") for v in row) for row in found] == kept
