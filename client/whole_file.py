"""Files of the cache: private, written under another name, by one process at a time."""

import contextlib
import fcntl
import os
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "become",
    "claimed",
    "load_arrays",
    "open_private",
    "remove_abandoned",
    "save_arrays",
]

_POLL = 0.05


def open_private(folder: Path) -> None:
    """Make ``folder`` where it is missing, and close it to everyone but its owner."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


@contextmanager
def claimed(path: Path, wait: float) -> Iterator[BinaryIO | None]:
    """Yield an empty file of mode 0600 beside ``path``, to be renamed to it; None if refused.

    It is held until the block ends or the process is gone, and then removed unless it was
    renamed (`become`). Another process that claims the same path waits meanwhile.

    Args:
        path: what the file is to become.
        wait: seconds to wait for another process; after them None is yielded.
    """
    part = _part(path)
    file = _hold(part, wait)
    if file is None:
        yield None
        return
    try:
        yield file
    finally:
        # While it is held: whoever waits for it sees by its number that this one is gone.
        if _is_at(file, part):
            part.unlink()
        file.close()


def become(file: BinaryIO, path: Path) -> None:
    """Give a claimed file its name; whatever had the name before is replaced."""
    file.flush()
    _part(path).replace(path)


def remove_abandoned(folder: Path) -> None:
    """Remove files that processes began and did not live to finish."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, part):
                part.unlink()


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write ``arrays`` to ``path`` whole; nothing where another process is about to."""
    open_private(path.parent)
    with claimed(path, 0.0) as file:
        if file is not None:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stubs want no dict
            become(file, path)


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return what `save_arrays` wrote; None where it is not there or not whole."""
    try:
        with path.open("rb") as file, np.load(file) as saved:
            arrays = {name: saved[name] for name in saved.files}
        os.utime(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _hold(part: Path, wait: float) -> BinaryIO | None:
    until = time.monotonic() + wait
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL)
            continue
        if _is_at(file, part):
            file.truncate(0)
            return file
        # Renamed or removed by who held it before.
        file.close()


def _is_at(file: BinaryIO, part: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), part.stat())
    except FileNotFoundError:
        return False
