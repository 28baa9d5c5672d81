"""What is wrong with a merchant's tables, and what they hold, as plain values."""

import datetime as dt
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from silotune.errors import DataError

__all__ = ["Problem", "Report", "Severity", "TableReport", "UnreadableError", "counted"]

Severity = Literal["error", "warning", "note"]


def counted(number: int, noun: str) -> str:
    """Return ``number`` and ``noun``, in the plural where it has to be.

    >>> counted(1, "row"), counted(12000, "row")
    ('1 row', '12,000 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in one place of one table, with all rows it concerns."""

    severity: Severity
    """`error`: refused; `warning`: imported, likely not as meant; `note`: dealt with on import."""
    file: str
    """File of the first row, or the table of a database."""
    column: str | None = None
    first_row: int | None = None
    """Row of data in that file, the first one is 1."""
    first_line: int | None = None
    """Line of that row in a CSV file, where the header is line 1; None for other sources."""
    sample: str | None = None
    """The value in that row, shortened; never one that tells customers apart."""
    count: int = 1
    """Rows concerned, in the whole table."""
    message: str
    """What is wrong, as the rest of a sentence that begins with the column or the file."""
    remedy: str
    """What to do, as sentences."""

    def __str__(self) -> str:
        subject = f"column '{self.column}' " if self.column else ""
        return f"{self.file}: {subject}{self.message}{self._place()}. {self.remedy}"

    def _place(self) -> str:
        row = f"row {self.first_row}" if self.first_row is not None else ""
        line = f"line {self.first_line}" if self.first_line is not None else ""
        if not row and not line:
            return ""
        place = ", ".join(filter(None, (row, line)))
        place += f": {self.sample!r}" if self.sample is not None else ""
        return f" ({'first ' if self.count > 1 else ''}at {place})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReport:
    """What one table holds."""

    file: str
    """The file, the folder of part files, or the table of a database."""
    rows: int
    empties: dict[str, int]
    """Empty values of each column that the table has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Outcome of a check. Exact counts: it stays with the merchant."""

    source: str
    """The folder, or the database without its password."""
    tables: dict[str, TableReport] = field(default_factory=dict)
    """By canonical name; a table that is missing is not here."""
    users: int = 0
    """Distinct customers in `events`."""
    items: int = 0
    """Rows of `items`."""
    first_time: dt.datetime | None = None
    """Time of the first event, UTC without zone."""
    last_time: dt.datetime | None = None
    problems: tuple[Problem, ...] = ()

    def of(self, severity: Severity) -> list[Problem]:
        """Return the problems of one severity."""
        return [p for p in self.problems if p.severity == severity]

    @property
    def ok(self) -> bool:
        """Whether the tables can be imported."""
        return not self.of("error")

    def raise_if_errors(self) -> None:
        """Raise DataError with all errors, one a line, if there are any."""
        errors = self.of("error")
        if errors:
            lines = [str(p) for p in errors]
            count = counted(len(errors), "error")
            raise DataError("\n".join([*lines, f"{count} in {self.source}; nothing was imported."]))

    def as_json(self) -> dict[str, Any]:
        """Return values that `json.dumps` takes; times as ISO 8601."""
        values = asdict(self)
        for name in ("first_time", "last_time"):
            time = values[name]
            values[name] = time.isoformat() if time is not None else None
        return {"ok": self.ok, **values}


class UnreadableError(DataError):
    """A file, or a table of a database, that cannot be read at all.

    Raised without the file's name, which the reader knows; `problem` puts it in front.
    """

    def __init__(
        self, message: str, remedy: str, *, first_line: int | None = None, count: int = 1
    ) -> None:
        """Take the parts of the `Problem` that it becomes."""
        super().__init__(f"{message}. {remedy}")
        self.message, self.remedy = message, remedy
        self.first_line, self.count = first_line, count

    def problem(self, file: str) -> Problem:
        """Return the problem of ``file``."""
        return Problem(
            severity="error",
            file=file,
            message=self.message,
            remedy=self.remedy,
            first_line=self.first_line,
            count=self.count,
        )
