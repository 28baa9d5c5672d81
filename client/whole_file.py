"""Files of the cache: private, written under another name, by one process at a time."""

import contextlib
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from silotune.errors import ConfigError

__all__ = [
    "become",
    "claimed",
    "load_arrays",
    "open_private",
    "remove_abandoned",
    "save_arrays",
    "told",
    "whole",
    "write_file",
    "write_text",
]

_POLL = 0.05
_DIGEST = 16


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


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is ``path`` once the block ends: whole, durable, mode 0600.

    Until then, and after an error or Ctrl-C, what had the name before has it still. Its folder is
    made. An error of the block is the block's own: one of writing is told by `told`.

    Raises:
        ConfigError: it cannot be written, or another process is about to.
    """
    with contextlib.ExitStack() as stack:
        # At the start: hours of work should not end before a folder that cannot be written.
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = stack.enter_context(claimed(path, 10.0))
        if file is None:
            raise ConfigError(f"{path}: another process is writing it. Wait for it.")
        yield file
        with told(path):
            file.flush()
            os.fsync(file.fileno())
            become(file, path)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names ``path``. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}).") from error


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill ``path`` as `whole` does. Raises ConfigError."""
    with whole(path) as file, told(path):
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as `write_file` does. Raises ConfigError."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_file(path, write)


def remove_abandoned(folder: Path) -> None:
    """Remove files that processes began and did not live to finish."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, part):
                part.unlink()


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write ``arrays`` to ``path`` whole; nothing where another process is about to.

    The file holds a BLAKE2b digest of 16 bytes, then NumPy's archive.
    """
    open_private(path.parent)
    with claimed(path, 0.0) as file:
        if file is not None:
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]  # its stubs want no dict
            # In front: a damaged archive can fail in ways that no list of errors covers.
            file.write(_digest(content.getvalue()) + content.getvalue())
            become(file, path)


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return what `save_arrays` wrote; None where it is not there or not whole."""
    try:
        whole = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, content = whole[:_DIGEST], whole[_DIGEST:]
    if _digest(content) != digest:
        return None
    with np.load(io.BytesIO(content)) as saved:
        return {name: saved[name] for name in saved.files}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _hold(part: Path, wait: float) -> BinaryIO | None:
    until = time.monotonic() + wait
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(part, flags, 0o600), "r+b")
        try:
            # One that was there has the mode, and the owner, that somebody else gave it.
            os.fchmod(file.fileno(), 0o600)
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
