"""The ledger's log as another process may read it: checked as it is when opened, never locked."""

import time
from pathlib import Path

from privacy.chain import Chain, Entry
from silotune.errors import LedgerError

__all__ = ["checked_entries"]

_TRIES, _PAUSE = 4, 0.05


def checked_entries(path: Path, *, anchor: Path | None = None) -> tuple[Entry, ...]:
    """Return the entries of the log in ``path`` after a check of every hash and of the anchor.

    The process that holds the log may go on writing; nothing is written or locked here. ε is not
    computed again: `privacy.ledger_report.verify` does that.

    Args:
        path: SQLite file; its key lies beside it.
        anchor: file that remembers the newest entry; None: beside ``path``.

    Raises:
        LedgerError: there is none, or it was changed, cut or set back.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _View(path, anchor).entries
        except LedgerError:
            # An entry that came between log and anchor looks like one that was cut off.
            if not left or not path.exists():
                raise
            time.sleep(_PAUSE)
    raise AssertionError  # pragma: no cover  # the last try returns or raises


class _View(Chain):
    """A chain without lock and connection. Appending to it is refused as to a closed one."""

    def __init__(self, path: Path, anchor: Path | None) -> None:
        self.path = path
        self.anchor = anchor or path.with_suffix(".anchor")
        self._key_path = path.with_suffix(".key")
        self._connection, self._lock = None, -1
        self._entries = list(Chain.read(path))
        self._key = self._read_key()
        self._check(self._entries)
        self._check_anchor()
