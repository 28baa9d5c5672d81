"""The ledger as a dashboard reads it: checked, while the daemon writes."""

import sqlite3
import subprocess
import sys
import threading

import pytest

from privacy.chain import Chain
from privacy.chain_view import checked_entries
from silotune.errors import LedgerError


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "ledger.db"
    chain = Chain(path)
    for number in range(5):
        chain.append("note", {"number": number})
    yield path, chain
    chain.close()


def test_entries_are_read_while_another_holds_the_log(log):
    path, chain = log
    assert checked_entries(path) == chain.entries
    chain.append("note", {"number": 5})
    assert len(checked_entries(path)) == 7


def test_reading_neither_locks_nor_writes(log):
    path, _ = log
    before = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    code = "import sys; from pathlib import Path; from privacy.chain_view import checked_entries;"
    code += "print(len(checked_entries(Path(sys.argv[1]))), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == ["6", "False"], done.stderr
    assert {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before


def test_a_log_that_grows_meanwhile_is_never_called_changed(log):
    path, chain = log
    end = threading.Event()
    counts, errors = [], []

    def read():
        while not end.is_set():
            try:
                counts.append(len(checked_entries(path)))
            except LedgerError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        chain.append("note", {"number": number})
    end.set()
    reader.join()
    assert not errors
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def _change(path, statement):
    with sqlite3.connect(path) as connection:
        for name in ("no_update", "no_delete"):
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda p: _change(p, "UPDATE entry SET body = '{}' WHERE seq = 3"), "entry 3 is not"),
        (lambda p: _change(p, "UPDATE entry SET time = 0 WHERE seq = 6"), "entry 6 is not"),
        (lambda p: _change(p, "DELETE FROM entry WHERE seq = 6"), "was cut"),
        (lambda p: _change(p, "DELETE FROM entry"), "holds no entry"),
        (lambda p: p.with_suffix(".anchor").unlink(), "is missing"),
        (lambda p: p.with_suffix(".anchor").write_text("{"), "damaged"),
        (lambda p: p.with_suffix(".key").write_bytes(bytes(32)), "entry 1 is not"),
        (lambda p: p.with_suffix(".key").unlink(), "is missing"),
        (lambda p: p.write_bytes(b"no database" * 100), "cannot be read"),
        (lambda p: p.unlink(), "no such file"),
    ],
)
def test_what_was_tampered_with_is_told(log, attack, words):
    path, _ = log
    attack(path)
    with pytest.raises(LedgerError, match=words):
        checked_entries(path)


def test_a_view_cannot_be_written(log):
    from privacy.chain_view import _View

    path, _ = log
    with pytest.raises(LedgerError, match="closed"):
        _View(path, None).append("note", {})
    assert len(checked_entries(path)) == 6
