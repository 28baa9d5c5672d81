import json
import multiprocessing
import sqlite3
import time

import pytest

from privacy.chain import Chain
from silotune.errors import LedgerError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def _write(path, count=3, **options):
    chain = Chain(path, **options)
    for i in range(count):
        chain.append("reserve", {"i": i, "ε": 0.1})
    chain.close()


def _edit(path, *statements):
    # What someone with the file and SQLite would do.
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("DROP TRIGGER no_delete")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_what_was_written_is_read_after_opening_again(path):
    _write(path)
    chain = Chain(path)
    assert [e.kind for e in chain.entries] == ["genesis", "reserve", "reserve", "reserve"]
    assert [e.body.get("i") for e in chain.entries] == [None, 0, 1, 2]
    assert len({e.hash for e in chain.entries}) == 4
    chain.close()


def test_files_are_for_the_owner_alone(path):
    _write(path)
    for name in ("ledger.db", "ledger.key", "ledger.lock", "ledger.anchor"):
        assert path.with_name(name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE entry SET body = \'{"i":9,"\\u03b5":0.1}\' WHERE seq = 3',
        "UPDATE entry SET body = replace(body, '0.1', '0.10') WHERE seq = 3",
        "UPDATE entry SET kind = 'clock' WHERE seq = 2",
        "UPDATE entry SET time = time - 1 WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 4",
        "DELETE FROM entry",
        "UPDATE entry SET seq = 9 WHERE seq = 4",
        "INSERT INTO entry SELECT 5, time, kind, body, hash, hash FROM entry WHERE seq = 4",
        "UPDATE entry SET previous = hash WHERE seq = 4",
        "DROP TABLE entry",
    ],
)
def test_a_change_is_found_when_the_ledger_is_opened(path, statement):
    _write(path)
    _edit(path, statement)
    with pytest.raises(LedgerError, match=r"ledger\.db"):
        Chain(path)


def test_whoever_lacks_the_key_cannot_write_a_chain_that_passes(path, tmp_path):
    _write(path)
    other = tmp_path / "other" / "ledger.db"
    _write(other)
    # A whole ledger, right in itself, under another key.
    path.write_bytes(other.read_bytes())
    with pytest.raises(LedgerError, match="entry 1 is not what was written"):
        Chain(path)


@pytest.mark.parametrize("keep", [0, 100, 4096, 9000])
def test_a_file_that_was_cut_is_refused(path, keep):
    _write(path, 60)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LedgerError, match=r"unchanged copy back|emptied"):
        Chain(path)


def test_an_older_copy_is_found_by_the_anchor(path):
    _write(path)
    old = path.read_bytes()
    _write(path, 1)
    path.write_bytes(old)
    with pytest.raises(LedgerError, match="older copy"):
        Chain(path)


def test_an_anchor_on_another_disk_finds_a_folder_that_was_set_back(path, tmp_path):
    anchor = tmp_path / "elsewhere" / "anchor"
    _write(path, anchor=anchor)
    before = {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    _write(path, 1, anchor=anchor)
    for file, content in before.items():
        file.write_bytes(content)
    with pytest.raises(LedgerError, match="older copy"):
        Chain(path, anchor=anchor)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.key", "ledger.anchor"])
def test_a_lost_file_is_refused_and_not_made_anew(path, name):
    _write(path)
    path.with_name(name).unlink()
    with pytest.raises(LedgerError, match="missing"):
        Chain(path)
    assert not path.with_name(name).exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"seq": 2}', b'{"seq": 2, "hash": "00"}'])
def test_a_damaged_anchor_is_refused(path, content):
    _write(path)
    path.with_suffix(".anchor").write_bytes(content)
    with pytest.raises(LedgerError, match="anchor"):
        Chain(path)


def test_an_anchor_that_is_one_entry_behind_is_the_trace_of_a_crash(path):
    _write(path)
    behind = path.with_suffix(".anchor").read_bytes()
    _write(path, 1)
    path.with_suffix(".anchor").write_bytes(behind)
    Chain(path).close()
    assert json.loads(behind)["seq"] == 4


@pytest.mark.parametrize("left", [{"part"}, {"part", "key"}, {"part", "key", "anchor"}])
def test_a_crash_while_the_ledger_was_made_leaves_nothing_in_the_way(path, left):
    for name in left:
        path.with_suffix(f".{name}").write_bytes(b"half")
    _write(path)
    assert len(Chain.read(path)) == 4


@pytest.mark.parametrize(("jump", "passes"), [(-200, True), (-400, False), (401 * 86400, False)])
def test_a_clock_that_jumps_stops_the_ledger_until_a_person_accepts_it(path, jump, passes):
    now = [1.7e9]
    chain = Chain(path, clock=lambda: now[0])
    now[0] += jump
    if passes:
        chain.append("reserve", {})
    else:
        with pytest.raises(LedgerError, match="accept-clock"):
            chain.append("reserve", {})
        chain.append("clock", {})
        chain.append("reserve", {})
    chain.close()


def _hold(path, opened, seconds):
    chain = Chain(path)
    opened.set()
    time.sleep(seconds)
    chain.append("reserve", {"by": "other"})
    chain.close()


@pytest.mark.parametrize(("wait", "passes"), [(0.2, False), (30.0, True)])
def test_a_second_process_waits_or_is_refused(path, wait, passes):
    context = multiprocessing.get_context("fork")
    opened = context.Event()
    process = context.Process(target=_hold, args=(path, opened, 1.0))
    process.start()
    assert opened.wait(20)
    if passes:
        chain = Chain(path, wait=wait)
        assert chain.entries[-1].body == {"by": "other"}
        chain.close()
    else:
        with pytest.raises(LedgerError, match="another process"):
            Chain(path, wait=wait)
    process.join()


def test_a_full_disk_is_an_error_in_words_and_the_ledger_closes(path, monkeypatch):
    chain = Chain(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("privacy.chain.write_whole", full)
    with pytest.raises(LedgerError, match="No space left"):
        chain.append("reserve", {})
    with pytest.raises(LedgerError, match="is closed"):
        chain.append("reserve", {})
    monkeypatch.undo()
    # What was on disk counts: the entry is there, the anchor one behind.
    again = Chain(path)
    assert again.entries[-1].kind == "reserve"
    again.close()
