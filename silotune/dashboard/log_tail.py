"""The newest lines of a log of JSON lines, as `silotune.logs` writes them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LogLine", "newest"]

_BYTES = 128 * 1024
"""Read from the end of a file, and no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """One line."""

    time: str
    """UTC, as written."""
    level: str
    process: str
    event: str
    fields: dict[str, Any]

    @property
    def words(self) -> str:
        """Return what it says beside its event."""
        return ", ".join(f"{k} {v}" for k, v in self.fields.items() if v is not None)


def newest(
    paths: Iterable[Path], *, events: Iterable[str] = (), levels: Iterable[str] = (), most: int = 50
) -> list[LogLine]:
    """Return the newest lines of ``paths`` with one of ``events`` or ``levels``, newest first.

    A line that is no JSON, or that is being written at this moment, is passed over.
    """
    named, at = frozenset(events), frozenset(levels)
    found = [
        line for path in paths for line in _lines(path) if line.event in named or line.level in at
    ]
    # Stable: of lines of one moment, the later one is newer.
    return sorted(found, key=lambda line: line.time)[: -most - 1 : -1]


def _lines(path: Path) -> Iterator[LogLine]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _BYTES))
            text = file.read(_BYTES).decode("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            raw = json.loads(line)
            head = {name: str(raw.pop(name, "")) for name in ("time", "level", "process", "event")}
        except (ValueError, AttributeError):
            continue
        yield LogLine(**head, fields=raw)
