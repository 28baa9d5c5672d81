"""Everything here runs the real command in a process of its own."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import duckdb
import pytest

from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig

SILOTUNE = [sys.executable, "-m", "silotune.cli"]
TABLES = {
    "events": "user_id,item_id,kind,time\n"
    "user-1,item-1,view,2024-01-02\nuser-1,item-1,cart,2024-01-01\n",
    "items": "item_id,title,category\nitem-1,Tea [black],Drinks\n",
    "promotions": "item_id,start,end,shelf\nitem-1,2024-01-01,2024-01-02,3\n",
}


def run(*arguments, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    environment |= {"COLUMNS": "100"}
    return subprocess.run(
        [*SILOTUNE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for table, text in TABLES.items():
        (folder / f"{table}.csv").write_text(text)
    return folder


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = ("torch", "flwr", "duckdb", "pyarrow", "numpy", "transformers", "pydantic")
    script = (
        "import sys\nfrom silotune.cli import main\ncode = main(['--help'])\n"
        f"sys.exit(f'imported {{found}}' if (found := set(sys.modules) & set({heavy!r})) else code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert "data" in done.stdout
    # 0.25 s on two idle cores; the promise is 0.7 s, the rest is for a busy machine.
    assert seconds < 2


def test_the_version_is_printed():
    from silotune import __version__

    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"silotune {__version__}\n")


@pytest.mark.parametrize("arguments", [["dta"], ["data", "check"], ["data", "check", ".", "--x"]])
def test_wrong_usage_is_explained_with_code_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage: silotune" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_made_up_merchants_tells_the_true_defaults():
    text = re.sub(r"[\s│]+", " ", run("data", "synthetic", "--help").stdout)
    defaults = SyntheticConfig()
    told = dict(re.findall(r"--([a-z-]+) (?:INTEGER|FLOAT).*? Default: ([0-9.]+)\. ", text))
    names = {"users": "users_per_merchant"}
    assert len(told) == 12
    for option, value in told.items():
        name = names.get(option, option.replace("-", "_"))
        assert float(value) == getattr(defaults, name), option


def test_check_shows_what_is_there_and_what_to_look_at(source):
    done = run("data", "check", source)
    assert done.returncode == 0, done.stderr
    assert "1 customers, 1 items, 2024-01-01 to 2024-01-02" in done.stdout
    assert "warning: promotions.csv: column 'shelf' is not used." in done.stdout
    assert "note: events.csv: column 'time' has 1 value earlier than the row before" in done.stdout
    assert "can be imported" in done.stdout
    assert done.stderr == ""


def test_check_fails_with_code_2_and_each_problem_on_a_line(source):
    (source / "items.csv").write_text("item_id,title,category\nitem-1,,Drinks\n[b],Tea,\n")
    done = run("data", "check", source)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    expected = "items.csv: column 'title' has 1 empty value (at row 1, line 2). Fill or drop them."
    assert f"error: {expected}" in lines
    assert "2 errors: cannot be imported" in lines


def test_check_prints_json(source):
    done = run("data", "check", source, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (report["ok"], report["tables"]["events"]["rows"], report["users"]) == (True, 2, 1)
    (source / "items.csv").unlink()
    done = run("data", "check", source, "--json")
    assert done.returncode == 2
    problem = json.loads(done.stdout)["problems"][0]
    assert (problem["severity"], problem["file"]) == ("error", "items")


def test_import_writes_a_silo(source, tmp_path):
    out = tmp_path / "silo"
    done = run("data", "import", source, out, "--name", "tea-shop", "--nominal-users", 100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: silo 'tea-shop', 2 events.\n"
    assert done.stderr.startswith("warning: promotions.csv: column 'shelf' is not used.")
    assert "Reading" not in done.stderr
    silo = SiloFolder.open(out)
    assert (silo.info.name, silo.info.nominal_users) == ("tea-shop", 100)


def test_import_fails_with_code_2_without_a_trace_and_leaves_nothing(source, tmp_path):
    (source / "items.csv").write_text("item_id,title,category\nitem-1,,Drinks\n")
    done = run("data", "import", source, tmp_path / "silo", "--name", "a", "--nominal-users", 9)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: items.csv: column 'title' has 1 empty value (at row 1, l")
    assert done.stderr.endswith("1 error in " + str(source) + "; nothing was imported.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = run("data", "import", source, tmp_path / "silo", "--name", "a b", "--nominal-users", 9)
    assert done.returncode == 2
    assert done.stderr.startswith("error: name is 'a b'; use letters")


def test_a_fault_of_silotune_has_code_1_and_a_trace():
    script = (
        "import sys\nimport silotune.cli as cli\n"
        "@cli.app.command()\ndef fault():\n    raise TypeError('unforeseen')\n"
        "sys.exit(cli.main(['fault']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "TypeError: unforeseen" in done.stderr


def test_other_files_add_commands_with_one_function():
    from silotune import cli

    assert callable(cli.data.register)
    assert {group.name for group in cli.app.registered_groups} >= {"data"}


def test_synthetic_writes_silos(tmp_path):
    out = tmp_path / "silos"
    done = run("data", "synthetic", out, "--merchants=2", "--users=20", "--weeks=4", "--seed=3")
    assert (done.returncode, done.stdout) == (0, f"{out}: 2 silos.\n"), done.stderr
    assert [silo.info.name for silo in list_silos(out)] == ["merchant-0001", "merchant-0002"]
    done = run("data", "synthetic", tmp_path / "none", "--merchants=0")
    assert done.returncode == 2
    assert "merchants is 0" in done.stderr
    assert not (tmp_path / "none").exists()


def test_complete_journey_writes_silos(tmp_path):
    done = run("data", "complete-journey", tmp_path / "silos", "--merchants=2", "--groups=1")
    assert done.returncode == 0, done.stderr
    assert len(list_silos(tmp_path / "silos")) == 1


def interrupt_after(arguments, ready, timeout=20):
    """Start the command, interrupt it once ``ready()``, and return its code and error text."""
    process = subprocess.Popen(
        [*SILOTUNE, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + timeout
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=timeout)
    return process.returncode, text


def test_an_interrupted_import_leaves_nothing_behind(source, tmp_path):
    with duckdb.connect() as con:
        con.execute(
            "COPY (SELECT hash(i) AS user_id, 'item-1' AS item_id, 'view' AS kind, TIMESTAMP "
            f"'2020-01-01' + to_seconds(i) AS time FROM range(3_000_000) r(i)) "
            f"TO '{source}/events.csv'"
        )
    arguments = ["data", "import", source, tmp_path / "silo", "--name=a", "--nominal-users=9"]

    def writing():
        return any(path.name.startswith(".") for path in tmp_path.iterdir())

    code, text = interrupt_after(arguments, writing)
    assert (code, text) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_import_that_waits_for_a_database_can_be_interrupted(postgres_uri, tmp_path):
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres_uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA slow")
        cursor.execute(
            "CREATE VIEW slow.events AS SELECT 'u' AS user_id, 'i' AS item_id, 'view' AS kind, "
            "now() AS time, pg_sleep(60)::text AS visit_id"
        )
        arguments = ["data", "import", f"{postgres_uri}&schema=slow", tmp_path / "silo"]
        arguments += ["--name=a", "--nominal-users=9"]
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"

        def sleeping():
            cursor.execute(asleep)
            return cursor.fetchall()[0][0] > 0

        code, text = interrupt_after(arguments, sleeping)
        assert (code, text) == (130, "interrupted\n")
        assert list(tmp_path.iterdir()) == []
        cursor.execute("DROP SCHEMA slow CASCADE")


@pytest.mark.parametrize(("option", "shown"), [([], True), (["--quiet"], False)])
def test_progress_is_shown_on_a_terminal_only(source, option, shown):
    master, slave = pty.openpty()
    done = subprocess.run(
        [*SILOTUNE, "data", "check", str(source), *option],
        stderr=slave,
        stdout=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(slave)
    text = b""
    # Linux says so when the other end of a terminal is closed.
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 4096):
            text += chunk
    os.close(master)
    assert done.returncode == 0
    assert (b"Reading" in text) == shown
    assert b"Reading" not in done.stdout


def test_a_full_disk_is_said_in_words_by_every_command(tmp_path):
    script = (
        "import resource, sys\nfrom silotune.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"sys.exit(main(['data', 'synthetic', '{tmp_path}/silos', '--users=2000']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the disk or the memory is full: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
