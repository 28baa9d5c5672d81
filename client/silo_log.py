"""The silo's own log, JSON lines: times, places and settings, no data. It stays inside."""

import logging
from pathlib import Path

from silotune.logs import Value, append_event

__all__ = ["append"]


def append(log: Path, name: str, level: int = logging.INFO, /, **fields: Value) -> None:
    """Add what happened to ``log``. A log that cannot be written stops nothing."""
    try:
        append_event(log, name, level, **fields)
    except OSError:
        # A full disk must not turn a refusal into a trace that leaves.
        logging.getLogger("silotune.silo").warning("the silo's log cannot be written.")
