"""For a process that `silotune.supervision` keeps running: its parent, its sockets, its word."""

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn, TextIO

from silotune.errors import ConfigError

__all__ = [
    "hold",
    "is_held",
    "is_ready",
    "leave",
    "mark_ready",
    "open_ready",
    "ready_file",
    "socket_path",
    "watch_parent",
]

_SOCKET_BYTES = 100
"""A Unix socket's path is cut at 108 bytes."""


def watch_parent() -> None:
    """End this process at once when its supervisor is gone: its standard input then ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="watch-parent", daemon=True).start()


def open_ready(folder: Path, name: str) -> TextIO:
    """Open what `mark_ready` writes, for the process ``name`` of ``folder``."""
    return ready_file(folder / "run", name).open("w", encoding="utf-8")


def mark_ready(ready: TextIO) -> None:
    """Tell the supervisor that this process does its work.

    Args:
        ready: from `open_ready`, opened while there were rights to.
    """
    ready.seek(0)
    ready.write(str(os.getpid()))
    ready.flush()


def leave() -> NoReturn:
    """End this process, whose work is on disk.

    Without tidying up the interpreter: with torch in it that is most of a second of processor
    time, which a stop waits for.
    """
    logging.shutdown()
    os._exit(0)


def socket_path(folder: Path, name: str) -> Path:
    """Return the path of a Unix socket for ``folder`` that only its owner can reach.

    In ``folder/run``; where that is too long for a socket, in a private folder of the system's
    temporary one.

    Raises:
        ConfigError: that folder is someone else's.
    """
    run = folder.resolve() / "run"
    if len(os.fsencode(run / name)) <= _SOCKET_BYTES:
        return run / name
    digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"silotune-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or short.is_symlink():
        raise ConfigError(f"{short}: must be a folder that only you can open. Remove it.")
    return short / name


def ready_file(run: Path, name: str) -> Path:
    """Return where the process ``name`` writes its number once it is ready."""
    return run / f"{name}.ready"


def is_ready(run: Path, name: str, pid: int | None) -> bool:
    """Return whether the process ``pid`` said that it does its work."""
    try:
        return int(ready_file(run, name).read_text(encoding="utf-8")) == pid
    except (OSError, ValueError):
        return False


def hold(lock: int, wait: float) -> bool:
    """Lock the open file ``lock``; return False where another has it after ``wait`` seconds."""
    # Whoever asks for the state holds the lock for a moment.
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        else:
            return True


def is_held(lock: Path) -> bool:
    """Return whether a process holds the file ``lock``."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
