"""Logs as JSON lines: time in UTC, level, process, event, fields. No data in them.

`event` writes silotune's own: a constant name and plain values that the code chose. What other
libraries log is text that nobody here has read, so in a process that sees a merchant's rows only
its place is kept: logger, file and line. The words of an exception may hold a row too: they are
kept where silotune raised it on purpose without data (`TOLD`), and, in processes that see none,
where the network did.

A process writes to its standard error, which its supervisor opened as a file. It names the file in
`LOG_VARIABLE`; the process then turns it over by size: NAME.log, NAME.log.1, and so on.
"""

import contextlib
import datetime as dt
import io
import json
import logging
import os
import stat
import sys
import threading
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from silotune.errors import (
    BudgetError,
    ConfigError,
    EgressError,
    LedgerError,
    MessageError,
    ModelError,
    PolicyError,
    StorageError,
)

__all__ = ["LOG_VARIABLE", "TOLD", "Value", "append_event", "configure", "event", "give_up", "why"]

LOG_VARIABLE = "SILOTUNE_LOG"
"""Environment variable with the path of the file that standard error goes to."""
TOLD = (
    BudgetError,
    ConfigError,
    EgressError,
    LedgerError,
    MessageError,
    ModelError,
    PolicyError,
    StorageError,
)
"""Errors whose words hold no data of a user."""

Value = str | int | float | bool | None
_BYTES = 5 * 2**20
"""Of one file; the one before it is kept beside it, and so on to `_KEPT`."""
_KEPT = 4
_LONGEST = 500
"""Characters of one value: the other side may have chosen them."""
_OURS = logging.getLogger("silotune.event")


def event(name: str, level: int = logging.INFO, /, **fields: Value) -> None:
    """Log that ``name`` happened, with plain values that hold nothing of a user."""
    _OURS.log(level, name, extra={"fields": fields})


def why(error: BaseException, *, sees_data: bool = True) -> dict[str, Value]:
    """Return what a log may tell of ``error``: kind, place, and words where they hold no data."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    # By name: httpx need not be loaded for it.
    network = isinstance(error, OSError) or type(error).__module__.split(".")[0] == "httpx"
    told = isinstance(error, TOLD) or (network and not sees_data)
    words = str(error) if told else "(words left out)"
    return {"error": type(error).__name__, "words": words, "place": place}


def configure(process: str, *, sees_data: bool, limit: int = _BYTES) -> None:
    """Send all logging, prints and uncaught exceptions of this process to its log.

    Call it after the imports: libraries that bring handlers of their own lose them.

    Args:
        process: name in every line.
        sees_data: whether a user's rows are in its memory.
        limit: bytes after which the file is turned over.
    """
    handler = _Handler(limit)
    handler.setFormatter(_Lines(process, sees_data=sees_data))
    root = logging.getLogger()
    for name in [None, *logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # A line for each request.
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Its own words about an error in here would come back in here.
    logging.raiseExceptions = False
    sys.stdout, sys.stderr = _Printed("print", 1), _Printed("print", 2)
    sys.excepthook = _uncaught
    threading.excepthook = lambda a: _uncaught(a.exc_type, a.exc_value, a.exc_traceback)
    sys.unraisablehook = lambda a: _uncaught(a.exc_type, a.exc_value, a.exc_traceback)


def give_up(error: Exception) -> NoReturn:
    """Log why this process cannot do its work, and end it with 1."""
    event("cannot go on", logging.ERROR, **why(error))
    sys.exit(1)


def append_event(path: Path, name: str, level: int = logging.INFO, /, **fields: Value) -> None:
    """Add one line to the log in ``path``, which no process holds open. Raises OSError."""
    record = logging.LogRecord("silotune.event", level, "", 0, name, None, None)
    record.fields = fields
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _Once(path, maxBytes=_BYTES, backupCount=_KEPT, encoding="utf-8")
    handler.setFormatter(_Lines("silo", sees_data=True))
    with contextlib.closing(handler):
        handler.emit(record)


class _Once(RotatingFileHandler):
    """Raises what goes wrong, to who asked for the line."""

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # logging's
        raise  # the one that is being handled


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Lines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, process: str, *, sees_data: bool) -> None:
        super().__init__()
        self._process = process
        self._sees_data = sees_data

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, Value] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
        }
        line |= self._ours(record) if record.name == _OURS.name else self._foreign(record)
        if record.exc_info and record.exc_info[1] is not None:
            line |= why(record.exc_info[1], sees_data=self._sees_data)
        return json.dumps({k: _short(v) for k, v in line.items()}, ensure_ascii=False)

    def _ours(self, record: logging.LogRecord) -> dict[str, Value]:
        fields: dict[str, Value] = getattr(record, "fields", {})
        return {"event": record.msg, **fields}

    def _foreign(self, record: logging.LogRecord) -> dict[str, Value]:
        line: dict[str, Value] = {"event": "library", "logger": record.name}
        if self._sees_data:
            return line | {"at": f"{record.filename}:{record.lineno}"}
        try:
            # Of an exception, asyncio puts the words into the second line.
            text = record.getMessage().strip().partition("\n")[0]
        except Exception:  # noqa: BLE001  # format and arguments do not fit
            text = str(record.msg)
        return line | {"text": text}


def _short(value: Any) -> Value:
    if isinstance(value, str):
        return value[:_LONGEST]
    # Anything else, a tensor or one of its numbers, would be written with its value.
    plain = type(value) in (bool, int, float, type(None))
    return value if plain else f"({type(value).__name__} left out)"


class _Handler(logging.Handler):
    """Writes lines to standard error, and turns its file over."""

    def __init__(self, limit: int) -> None:
        super().__init__(logging.INFO)
        self._limit = limit
        path = os.environ.get(LOG_VARIABLE)
        self._path = Path(path) if path else None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. A log that cannot be written stops nothing."""
        line = self.format(record).encode("utf-8", "replace") + b"\n"
        with contextlib.suppress(OSError):
            self._turn_over()
            os.write(2, line)

    def _turn_over(self) -> None:
        found = os.fstat(2)
        if self._path is None or not stat.S_ISREG(found.st_mode) or found.st_size < self._limit:
            return
        for number in range(_KEPT - 1, 0, -1):
            older = _numbered(self._path, number)
            if older.exists():
                older.replace(_numbered(self._path, number + 1))
        self._path.replace(_numbered(self._path, 1))
        new = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        shared = os.fstat(1).st_ino == found.st_ino
        for number in (1, 2) if shared else (2,):
            os.dup2(new, number)
        os.close(new)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class _Printed(io.TextIOBase):
    """Stands for standard output and error: a printed line is a record like any library's."""

    encoding = "utf-8"

    def __init__(self, logger: str, number: int) -> None:
        self._logger = logging.getLogger(logger)
        self._number = number
        self._part = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        self._part = self._part[-_LONGEST:]
        for line in lines:
            if line.strip():
                self._logger.info("%s", line)
        return len(text)


def _uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        known = (kind, error or kind(), trace)
        logging.getLogger("uncaught").critical("an exception ended it", exc_info=known)
