"""Full disks and locked databases under a federation of real processes: the run goes on."""

import json
import os
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager

import pytest

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows, verify

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def _queue(federation, name, **changes):
    run = federation.run_file(
        **{"name": name, "noise": 8.0, "deadline": 300, "rounds": 2} | changes
    )
    federation.silotune("server", "run", federation.server, run, "--detach")
    return federation.server / "runs" / name


def _finished(federation, folder, seconds=400):
    """Wait for the end of the run; return its record."""
    until = time.monotonic() + seconds
    while (state := _state(folder)) in ("waiting", "running"):
        assert time.monotonic() < until, federation.logs()
        time.sleep(0.3)
    assert state == "finished", federation.logs()
    lines = (folder / "rounds" / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _state(folder):
    return json.loads((folder / "status.json").read_text())["state"]


def _rows(federation, name):
    """Return each silo's reservations for the run; every ledger must verify."""
    found = []
    for silo in federation.silos:
        rows = ledger_rows(Chain.read(silo / "ledger.db"))
        found.append([r for r in rows if r.job == name])
    return found


def _wait(true, federation, seconds=200):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, federation.logs()
        time.sleep(0.2)


@contextmanager
def _held(path):
    """Hold the database as a careless backup does."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_full_disk_of_the_aggregator_stops_no_run(federation):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    runs = federation.server / "runs"
    runs.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        folder = _queue(federation, "disk")
        filler = runs / "filler"
        _wait(lambda: _state(folder) == "running", federation)
        with filler.open("wb", 0) as file:
            try:
                while file.write(b"x" * 512):
                    pass
            except OSError:
                pass
        log = federation.server / "logs" / "executor.log"
        _wait(lambda: "cannot work" in log.read_text(), federation)
        assert "No space left" in log.read_text()
        assert _state(folder) == "running"
        filler.unlink()
        records = _finished(federation, folder)
        assert [r["round"] for r in records] == [0, 1]
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=False)
    # The round that the disk did not take was asked again, and cost nothing more.
    assert [[r.round for r in rows] for rows in _rows(federation, "disk")] == [[0, 1], [0, 1]]


def test_a_held_database_of_the_superlink_stops_no_run(federation):
    folder = _queue(federation, "held")
    _wait(lambda: _state(folder) == "running", federation)
    with _held(federation.server / "state.db"):
        time.sleep(15)
    records = _finished(federation, folder)
    assert [(r["round"], r["replies"]) for r in records] == [(0, 2), (1, 2)]
    assert [[r.round for r in rows] for rows in _rows(federation, "held")] == [[0, 1], [0, 1]]


def test_a_held_ledger_is_told_and_its_merchant_comes_back_into_the_round(federation):
    silo = federation.silos[0]
    with _held(silo / "ledger.db"):
        folder = _queue(federation, "ledger")
        log = silo / "logs" / "daemon.log"
        words = "a backup or database browser: end it"
        # The daemon that was refused ends, and the next one says why it cannot begin.
        _wait(lambda: words in log.read_text(), federation)
    records = _finished(federation, folder)
    assert [(r["round"], r["replies"]) for r in records] == [(0, 2), (1, 2)]
    assert words in (silo / "silo.log").read_text()
    assert [[r.round for r in rows] for rows in _rows(federation, "ledger")] == [[0, 1], [0, 1]]
    federation.until_ready(silo, "daemon", None)


def test_every_ledger_verifies_after_all_of_it(federation):
    federation.silotune("client", "stop", *federation.silos)
    for silo in federation.silos:
        assert verify(silo / "ledger.db").reservations
    federation.silotune("client", "start", *federation.silos)
