"""The silo's own log: times, places and settings, no data. It stays inside."""

import logging
import time
from pathlib import Path

__all__ = ["append"]


def append(log: Path, words: str) -> None:
    """Add a line with the time to ``log``. A log that cannot be written stops nothing."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {words}\n")
    except OSError:
        # A full disk must not turn a refusal into a trace that leaves.
        logging.getLogger("silotune.silo").warning("the silo's log cannot be written.")
