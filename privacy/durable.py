"""Files that hold the old content or the new in any crash; a lock that dies with its process."""

import fcntl
import os
import time
from pathlib import Path

from silotune.errors import LedgerError
from silotune.tables.staging import sync

__all__ = ["is_locked", "lock", "remedy", "unlock", "write_whole"]


def lock(path: Path, wait: float) -> int:
    """Return a handle that holds ``path`` until `unlock`, or until this process is gone.

    Raises:
        LedgerError: another process holds it after ``wait`` seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(handle)
                raise LedgerError(
                    f"{path}: another process holds this ledger. Wait for it, or stop it."
                ) from None
            time.sleep(0.05)
        else:
            return handle


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write ``path``, mode 0600, so that it holds the old content or the new in any crash."""
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _write(part, content)
    part.replace(path)
    sync(path.parent)


def unlock(handle: int) -> None:
    """Give a lock up."""
    os.close(handle)


def is_locked(error: Exception) -> bool:
    """Return whether SQLite raised ``error`` because another program holds the file."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def remedy(error: Exception) -> str:
    """Return what to do about a file that could not be read or written, without a full stop."""
    if is_locked(error):
        return "Another program holds the file, a backup or database browser: end it"
    return "Make room or repair the disk"
