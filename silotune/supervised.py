"""For a process that `silotune.supervision` keeps running: its parent, its sockets, its word."""

import hashlib
import os
import tempfile
import threading
from pathlib import Path
from typing import TextIO

from silotune.errors import ConfigError

__all__ = ["mark_ready", "open_ready", "ready_file", "socket_path", "watch_parent"]

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
