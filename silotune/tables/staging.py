"""Folders and files that appear whole or not at all, readable by their owner alone."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from silotune.errors import DataError

__all__ = ["sql_path", "staged_folder", "sync", "write_private"]


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a private folder that becomes ``out`` when the block ends well, and vanishes if not.

    Raises:
        DataError: ``out`` exists, or cannot be made.
    """
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists already. Name another folder or remove this one.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error}).") from error
    try:
        yield stage
        sync(stage)
        stage.rename(out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def write_private(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600 and wait until the disk has it."""
    with open(path, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has the file or folder ``path``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sql_path(path: Path) -> str:
    """Return ``path`` as a string literal of SQL."""
    return "'" + str(path).replace("'", "''") + "'"
