"""Long work on this machine: stopped at once by Ctrl-C, and clear about a full disk."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb

from silotune.errors import DataError

__all__ = ["Cancellable", "explain_full_disk", "is_interruption", "is_shortage"]

T = TypeVar("T")

_SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL_SECONDS = 0.1


class Cancellable:
    """Runs work in a thread of its own, so that Ctrl-C reaches what the work waits for.

    A query that DuckDB runs in the main thread notices the signal only when its sort is done.
    """

    def __init__(self) -> None:
        self._cancels: list[Callable[[], None]] = []

    def on_cancel(self, cancel: Callable[[], None]) -> None:
        """Have ``cancel`` called, from another thread and maybe repeatedly, to stop the work."""
        self._cancels.append(cancel)

    def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises.

        Raises:
            KeyboardInterrupt: after the work has stopped and cleaned up behind itself.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()  # signals do not arrive here
        results: list[T] = []
        errors: list[BaseException] = []
        # Not the thread's own `join`: one that Ctrl-C interrupts takes the thread for ended.
        ended = threading.Event()

        def body() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=body, name="silotune-work")
        thread.start()
        interrupted = self._wait(ended)
        thread.join()
        try:
            if interrupted:
                raise KeyboardInterrupt
            if errors:
                raise errors[0]
        finally:
            # An error that can reach itself through this frame keeps all it touched alive.
            errors.clear()
        return results[0]

    def _wait(self, ended: threading.Event) -> bool:
        """Wait for the work and return whether it was interrupted meanwhile."""
        interrupted = False
        while not ended.is_set():
            try:
                if interrupted:
                    # Again and again: between two queries there is nothing to stop.
                    for cancel in self._cancels:
                        # What is closed already needs no stopping.
                        with contextlib.suppress(Exception):
                            cancel()
                ended.wait(_POLL_SECONDS)
            except KeyboardInterrupt:
                interrupted = True
        return interrupted


def is_interruption(error: BaseException) -> bool:
    """Whether ``error`` is DuckDB's way to say that Ctrl-C stopped a query."""
    stopped = isinstance(error, RuntimeError) and str(error) == "Query interrupted"
    return stopped or isinstance(error, duckdb.InterruptException)


def is_shortage(error: BaseException) -> bool:
    """Whether ``error`` says that this machine's disk or memory is used up."""
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES
    if isinstance(error, duckdb.OutOfMemoryException):
        return True
    # DuckDB passes the operating system's words on.
    texts = [os.strerror(code) for code in _SHORTAGES]
    return isinstance(error, duckdb.Error) and any(text in str(error) for text in texts)


@contextlib.contextmanager
def explain_full_disk(folder: Path, consequence: str) -> Iterator[None]:
    """Raise DataError, naming ``folder`` and ending in ``consequence``, when space runs out."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        if not is_shortage(error):
            raise
        scarce = "memory and disk" if isinstance(error, duckdb.OutOfMemoryException) else "disk"
        raise DataError(
            f"{folder}: the {scarce} is full or a quota is reached. Make room, about three times "
            f"the size of the tables, or choose another disk; {consequence}"
        ) from error
