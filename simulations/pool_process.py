"""What happens inside a worker process of the pool."""

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from client.worker import worker_for

__all__ = ["called", "start"]

_CALLS_BETWEEN = 8
"""Calls of a worker after which it gives freed memory back to the system."""

_federation: Path | None = None
_calls = itertools.count(1)


def start(federation: Path) -> None:
    """Make this process a worker for a federation file: one thread, ended with its parent."""
    global _federation
    _federation = federation
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C goes to the whole group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # DuckDB's bindings report what a worker still holds when its interpreter is taken apart.
    # A worker has nothing to tidy up: results have left it, files are whole once renamed.
    atexit.register(os._exit, 0)


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, and each holds gigabytes.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run ``function(worker, *arguments)`` with this process's worker."""
    if _federation is None:
        raise RuntimeError("the pool's worker was not started by the pool.")
    try:
        return function(worker_for(_federation), *arguments)
    finally:
        _give_back(next(_calls))


def _give_back(call: int) -> None:
    # What is freed leaves holes that nothing of another size fits: without this, a worker grows
    # by half of what it needs over some dozens of silos. Each time costs some hundredths of a
    # second, for pages that are touched anew.
    if call % _CALLS_BETWEEN == 0 and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)
