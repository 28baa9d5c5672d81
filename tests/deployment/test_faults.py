"""Faults of clock, disk, database, checkpoint and certificate: named in words, nothing lost."""

import datetime as dt
import http.server
import json
import multiprocessing
import os
import sqlite3
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from client.first_look import trouble_with
from client.flower_node import pinned_context
from privacy.accounting import GaussianEvent
from privacy.ledger import Ledger
from privacy.ledger_report import verify
from server import certificates
from server.certificates import (
    certificate_sha256,
    check_dates,
    make_authority,
    make_server_certificate,
)
from server.run_store import RunStore
from server.setup import init, renew
from silotune.errors import ConfigError, LedgerError, StorageError

EVENT = GaussianEvent(sampling_rate=0.01, noise_multiplier=20.0, steps=1)


@contextmanager
def aggregator(folder, clock=0.0):
    """Something with the certificate of ``folder`` that answers, its clock ``clock`` s off."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(200)
            if clock is not None:
                when = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=clock)
                self.send_header("Date", when.strftime("%a, %d %b %Y %H:%M:%S GMT"))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    class Quiet(http.server.HTTPServer):
        def handle_error(self, *_):
            pass

    server = Quiet(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with authority and certificate of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder, "a")
    make_server_certificate(folder, "a", ["127.0.0.1"])
    return folder


def _context(folder, digest=None):
    digest = digest or certificate_sha256(folder / "server.crt")
    return pinned_context((folder / "ca.crt").read_text(), digest)


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        (0, None),
        (None, None),
        (200, None),
        (-3, None),
        (-60, "60 s ahead of the aggregator's"),
        (900, "900 s behind the aggregator's"),
    ],
)
def test_a_clock_that_the_aggregator_would_refuse_is_named(authority, clock, said):
    with aggregator(authority, clock) as address:
        trouble = trouble_with(address, _context(authority))
    if said is None:
        assert trouble is None
    else:
        # A second may pass between.
        assert said.split(" s ")[1] in trouble
        assert "Set the clocks by a time service" in trouble


@pytest.mark.parametrize(
    ("begins", "days", "node", "operator"),
    [
        (-10, -1, "certificate has expired", "expired on .*silotune server renew"),
        (2, 30, "not yet valid", "valid from .* Set the clock"),
    ],
)
def test_a_certificate_out_of_its_time_is_named_on_both_sides(
    tmp_path, monkeypatch, begins, days, node, operator
):
    make_authority(tmp_path, "a")
    monkeypatch.setattr(certificates, "_CLOCKS", -dt.timedelta(days=begins))
    monkeypatch.setattr(certificates, "_SERVER_DAYS", days)
    make_server_certificate(tmp_path, "a", ["127.0.0.1"])
    with aggregator(tmp_path) as address:
        assert node in trouble_with(address, _context(tmp_path))
    with pytest.raises(ConfigError, match=operator):
        check_dates(tmp_path / "server.crt")


def test_another_certificate_and_no_answer_are_named(authority):
    with aggregator(authority) as address:
        assert "another certificate" in trouble_with(address, _context(authority, "0" * 64))
    assert "cannot be reached" in trouble_with(address, _context(authority))


def test_a_renewed_certificate_comes_with_its_invitation_and_keeps_the_authority(tmp_path):
    folder = tmp_path / "aggregator"
    before = init(folder, name="a", address="127.0.0.1:18443", listen="127.0.0.1")
    after = renew(folder)
    assert after.identity != before.identity
    assert after.ca == before.ca
    assert after.certificate_sha256 in (folder / "invitation.toml").read_text()
    check_dates(folder / "server.crt")
    with aggregator(folder) as address:
        assert trouble_with(address, _context(folder)) is None
    (folder / "ca.key").unlink()
    with pytest.raises(ConfigError, match="another authority"):
        renew(folder)


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 KiB, and a function that fills it or makes room again."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    filler = folder / "filler"

    def full(yes):
        filler.unlink(missing_ok=True)
        if yes:
            with filler.open("wb", 0) as file:
                try:
                    while file.write(b"x" * 512):
                        pass
                except OSError:
                    pass

    yield folder, full
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_round_that_a_full_disk_does_not_take_is_not_there(disk):
    folder, full = disk
    store = RunStore(folder / "job", "digest")
    store.save(0, torch.ones(1000), {"seconds": 1.0}, releases={7: "a"})
    full(True)
    with pytest.raises(StorageError, match=r"No space left.*Make room"):
        store.save(1, torch.ones(1000) * 2, {"seconds": 1.0}, releases={7: "b"})
    again = RunStore(folder / "job", "digest")
    assert again.resume() == 1
    assert torch.equal(again.load(0), torch.ones(1000))
    assert [r["round"] for r in again.records()] == [0]
    full(False)
    again.save(1, torch.ones(1000) * 2, {"seconds": 1.0}, releases={7: "b"})
    assert again.resume() == 2
    assert again.releases(1) == {7: "b"}


def _reserve_many(ledger):
    for number in range(100):
        ledger.reserve(f"r{number}", [EVENT], {}, epsilon=8.0, delta=1e-5)


def test_a_ledger_on_a_full_disk_refuses_and_has_everything_afterwards(disk):
    folder, full = disk
    ledger = Ledger(folder / "ledger.db")
    done = ledger.reserve("first", [EVENT], {}, epsilon=8.0, delta=1e-5)
    ledger.record_release(done, b"release", {"name": "update"})
    full(True)
    with pytest.raises(LedgerError, match="Make room or repair the disk"):
        _reserve_many(ledger)
    # It is closed until it is opened again: what is on disk is not known here.
    assert ledger.closed
    full(False)
    with Ledger(folder / "ledger.db") as again:
        payload, _ = again.stored("first")
        assert payload == b"release"
        spent = again.spent(1e-5)
    assert verify(folder / "ledger.db").epsilon == spent


def test_a_ledger_that_another_program_holds_says_so_and_nothing_is_lost(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.reserve("first", [EVENT], {}, epsilon=8.0, delta=1e-5)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError, match=r"locked.*a backup or database browser: end it"):
        ledger.reserve("second", [EVENT], {}, epsilon=8.0, delta=1e-5)
    with pytest.raises(LedgerError, match="a backup or database browser: end it") as caught:
        Ledger(path)
    # No advice that would set the ledger back.
    assert "copy" not in str(caught.value)
    other.execute("ROLLBACK")
    other.close()
    Ledger(path).close()
    found = verify(path)
    assert (found.reservations, found.released) == (1, 0)


def test_a_store_that_was_cut_off_anywhere_is_whole_again_at_the_next_start(tmp_path):
    folder = tmp_path / "job"
    store = RunStore(folder, "digest")
    for round_ in range(3):
        store.save(round_, torch.full((4,), float(round_)), {"seconds": 1.0 + round_})
    whole = (folder / "rounds.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    # Killed after the adapter, before or within the record.
    for left in (b"", b"".join(lines[:2]), whole[:-20], b"".join(lines[:2]) + b"\xc3", None):
        if left is None:
            (folder / "rounds.jsonl").unlink()
        else:
            (folder / "rounds.jsonl").write_bytes(left)
        (folder / "round-0003.safetensors.part").write_bytes(b"half")
        again = RunStore(folder, "digest")
        assert again.resume() == 3
        assert (folder / "rounds.jsonl").read_bytes() == whole
        assert [r["seconds"] for r in again.records()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_checkpoint_that_is_cut_is_named_with_what_to_do(tmp_path, kept):
    store = RunStore(tmp_path, "digest")
    store.save(0, torch.zeros(400), {})
    path = tmp_path / "round-0000.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"round-0000\.safetensors: damaged .* delete it"):
        store.load(store.resume() - 1)
    path.unlink()
    assert store.resume() == 0


def _save_for_ever(folder):
    store = RunStore(folder, "digest")
    for round_ in range(store.resume(), 10**6):
        adapter_D = torch.full((1000,), float(round_))
        store.save(round_, adapter_D, {"seconds": 1.0}, releases={1: str(round_)})


def test_kills_while_rounds_are_saved_lose_and_double_none(tmp_path):
    count, folder = 0, tmp_path / "job"
    for delay in (0.05, 0.1, 0.2, 0.3, 0.5):
        saving = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(folder,))
        saving.start()
        time.sleep(delay)
        saving.kill()
        saving.join()
        store = RunStore(folder, "digest")
        count = store.resume()
        assert [r["round"] for r in store.records()] == list(range(count))
        for round_ in range(count):
            assert torch.equal(store.load(round_), torch.full((1000,), float(round_)))
            assert store.releases(round_) == {1: str(round_)}
    assert count


def test_a_status_that_is_damaged_is_named(tmp_path):
    from server.runs import Run

    (tmp_path / "status.json").write_text(json.dumps({"state": "running"})[:-5])
    with pytest.raises(ConfigError, match=r"status\.json: damaged"):
        Run(Path(tmp_path)).status()
