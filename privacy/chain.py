"""An append-only log that shows tampering, truncation and being set back.

SQLite holds the entries, each with an HMAC over itself and its predecessor's. The key lies
beside it, readable by the owner alone. An anchor, one small file that may lie on another disk,
holds the place and the HMAC of the newest entry: a log that is older than its anchor was set
back. Whoever can replace log and anchor with an older pair is not noticed here; DESIGN.md trusts
the merchant's operators.
"""

import hashlib
import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privacy.durable import is_locked, lock, remedy, unlock, write_whole
from privacy.entries import Entry, anchor_text, canonical, parse, row
from silotune.errors import LedgerError
from silotune.tables.staging import sync

__all__ = ["Chain", "Entry"]

_SCHEMA = """
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
_INSERT = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)"
_FIRST = "0" * 64
_KEY_BYTES = 32
_BACKWARD = 300.0
"""Seconds that a clock may lie behind the newest entry: what time services correct."""
_FORWARD = 400 * 86_400.0
"""Seconds without an entry after which the clock is doubted rather than believed."""


class Chain:
    """The log in ``path``, held by one process at a time.

    Args:
        path: SQLite file; made, with its key, where there is none.
        anchor: file that remembers the newest entry; None: beside ``path``.
        wait: seconds to wait for another process that holds the log.
        clock: seconds since 1970.

    Raises:
        LedgerError: another process holds it, or it was tampered with, cut, or set back.
    """

    def __init__(
        self,
        path: Path,
        *,
        anchor: Path | None = None,
        wait: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.anchor = anchor or path.with_suffix(".anchor")
        self._key_path = path.with_suffix(".key")
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path.with_suffix(".lock"), wait)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._connection: sqlite3.Connection | None = None
        if not self.path.exists():
            self._create()
        self._key = self._read_key()
        try:
            # SQLite would make an empty file where there is none.
            self._connection = sqlite3.connect(f"file:{self.path}?mode=rw", uri=True)
            self._connection.isolation_level = None
            # EXTRA: a commit returns when the disk has the entry and the journal's removal.
            self._connection.execute("PRAGMA synchronous = EXTRA")
        except sqlite3.DatabaseError as error:
            raise _unreadable(self.path, error) from error
        self._entries = list(_read(self._connection, self.path))
        self._check(self._entries)
        self._check_anchor()

    def _create(self) -> None:
        part = self.path.with_suffix(".part")
        # The log gets its name last: where it is, key and anchor are. Where only they are, and
        # no half-made log, it was lost.
        for left in (self.anchor, self._key_path):
            if left.exists() and not part.exists():
                raise LedgerError(
                    f"{self.path}: is missing, but {left} is there. Put the newest copy of the "
                    "ledger back; without it, what was spent is unknown, and this silo's users "
                    "must not be trained on privately again."
                )
        self._key = secrets.token_bytes(_KEY_BYTES)
        first = self._entry(1, "genesis", {"id": secrets.token_hex(16)}, _FIRST)
        part.unlink(missing_ok=True)
        connection = sqlite3.connect(part)
        try:
            connection.executescript(_SCHEMA)
            connection.execute(_INSERT, row(first))
            connection.commit()
        finally:
            connection.close()
        part.chmod(0o600)
        sync(part)
        write_whole(self._key_path, self._key)
        write_whole(self.anchor, anchor_text(first))
        part.rename(self.path)
        sync(self.path.parent)

    def _entry(self, seq: int, kind: str, body: Mapping[str, Any], previous: str) -> Entry:
        now, text = self._clock(), canonical(body)
        return Entry(
            seq=seq,
            time=now,
            kind=kind,
            body=json.loads(text),
            previous=previous,
            hash=self._hash(seq, now, kind, text, previous),
        )

    def _read_key(self) -> bytes:
        try:
            key = self._key_path.read_bytes()
        except FileNotFoundError:
            raise LedgerError(
                f"{self._key_path}: is missing; without it the ledger cannot be checked. Put it "
                "back from a copy."
            ) from None
        if len(key) != _KEY_BYTES:
            raise LedgerError(f"{self._key_path}: has {len(key)} bytes; the key has {_KEY_BYTES}.")
        return key

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first."""
        return tuple(self._entries)

    @property
    def closed(self) -> bool:
        """Whether it takes no entries any more: closed, or it could not be written."""
        return self._connection is None

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry; it is on disk when this returns.

        Args:
            kind: what happened.
            body: plain JSON values.

        Raises:
            LedgerError: the clock ran backwards or jumped, the disk is full, or the log is closed.
        """
        if self._connection is None:
            raise LedgerError(f"{self.path}: is closed.")
        last = self._entries[-1]
        entry = self._entry(last.seq + 1, kind, body, last.hash)
        if kind != "clock":
            self._check_clock(entry.time, last.time)
        try:
            self._connection.execute(_INSERT, row(entry))
            self._entries.append(entry)
            # After the log: a crash between leaves an anchor that is behind, never one ahead.
            write_whole(self.anchor, anchor_text(entry))
        except (sqlite3.Error, OSError) as error:
            # Whether the entry is on disk is not known here; the next opening reads it.
            self.close()
            raise LedgerError(
                f"{self.path}: an entry could not be written ({error}). {remedy(error)}, then "
                "start again; nothing is released until it can be written."
            ) from error
        return entry

    def _check_clock(self, now: float, last: float) -> None:
        if now < last - _BACKWARD:
            raise LedgerError(
                f"{self.path}: the clock says {_when(now)}, the newest entry is of {_when(last)}. "
                "Set the clock right, or accept it with `silotune client ledger accept-clock`."
            )
        if now > last + _FORWARD:
            raise LedgerError(
                f"{self.path}: the newest entry is of {_when(last)}, the clock says {_when(now)}. "
                "If that is right, accept it with `silotune client ledger accept-clock`."
            )

    def _hash(self, seq: int, when: float, kind: str, text: str, previous: str) -> str:
        message = canonical([seq, when.hex(), kind, text, previous])
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    def _check(self, entries: list[Entry]) -> None:
        previous = _FIRST
        if not entries:
            raise LedgerError(f"{self.path}: holds no entry: the ledger was emptied.")
        for index, e in enumerate(entries):
            right = self._hash(e.seq, e.time, e.kind, canonical(e.body), e.previous)
            if (
                e.seq != index + 1
                or e.previous != previous
                or not hmac.compare_digest(right, e.hash)
            ):
                raise LedgerError(
                    f"{self.path}: entry {index + 1} is not what was written: the ledger was "
                    "changed. Put the newest unchanged copy back."
                )
            previous = e.hash

    def _check_anchor(self) -> None:
        try:
            raw = json.loads(self.anchor.read_bytes())
            seq, digest = int(raw["seq"]), str(raw["hash"])
        except FileNotFoundError:
            raise LedgerError(
                f"{self.anchor}: is missing; without it, it is not known whether the ledger is "
                "the newest. Put it back."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{self.anchor}: is damaged. Put it back from a copy.") from error
        if seq > len(self._entries):
            raise LedgerError(
                f"{self.path}: ends with entry {len(self._entries)}, but entry {seq} was written: "
                "the ledger was cut or an older copy was put in its place. Put the newest copy "
                "back; without it, what was spent is unknown, and this silo's users must not be "
                "trained on privately again."
            )
        if seq < 1 or not hmac.compare_digest(self._entries[seq - 1].hash, digest):
            raise LedgerError(
                f"{self.anchor}: does not belong to {self.path}: one of the two was changed or "
                "put in the other's place."
            )

    def close(self) -> None:
        """Let the next process have the log."""
        if getattr(self, "_connection", None) is not None:
            self._connection.close()  # type: ignore[union-attr]  # not None, see the line above
            self._connection = None
        # Closing the file gives the lock up.
        if self._lock >= 0:
            unlock(self._lock)
        self._lock = -1

    @staticmethod
    def read(path: Path) -> tuple[Entry, ...]:
        """Return the entries of the log in ``path`` as they are, unchecked and unlocked.

        Raises:
            LedgerError: there is none, or it is no ledger.
        """
        if not path.exists():
            raise LedgerError(f"{path}: no such file; the first private training makes it.")
        with _connection(path) as connection:
            return tuple(_read(connection, path))


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def _read(connection: sqlite3.Connection, path: Path) -> Iterator[Entry]:
    try:
        rows = connection.execute(
            "SELECT seq, time, kind, body, previous, hash FROM entry ORDER BY seq"
        ).fetchall()
        for seq, when, kind, text, previous, digest in rows:
            body = parse(text)
            yield Entry(seq=seq, time=when, kind=kind, body=body, previous=previous, hash=digest)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LedgerError:
    # Of a file that is only held, no copy is needed.
    way = remedy(error) if is_locked(error) else "Put the newest unchanged copy back"
    return LedgerError(f"{path}: cannot be read as a ledger ({error}). {way}.")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
