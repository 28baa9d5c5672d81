"""What must be known about a CSV file before its rows are read: encoding, header, delimiter.

The format is RFC 4180 with a choice of delimiter: fields in double quotes where they need them, a
quote within them doubled, a first line of column names, UTF-8 with or without a byte-order mark.
"""

import codecs
import contextlib
import csv
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from silotune.tables.problems import UnreadableError

__all__ = ["DELIMITERS", "QUOTES_REMEDY", "CsvFile", "inspect_csv", "line_at", "lines_of_rows"]

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Tried in this order; the first wins a tie."""

QUOTES_REMEDY = (
    "Put fields that hold the delimiter, a quote or a line break in double quotes and double the "
    "quotes within."
)

_CHUNK_BYTES = 1 << 20
_ROW_BYTES = 2_000_000  # DuckDB's limit
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvFile:
    """A CSV file whose text is UTF-8 throughout."""

    path: Path
    delimiter: str
    header: tuple[str, ...]
    rows: int | None
    """Rows of data, counted where the file has quotes; None where each line is a row.

    DuckDB drops a last row whose quotes do not end, without a word: it has to find as many."""


def inspect_csv(path: Path, known: Collection[str]) -> CsvFile:
    """Read ``path`` once for its encoding and its header.

    Args:
        path: the file.
        known: names of the columns that the table may have; they tell the delimiter.

    Raises:
        UnreadableError: not UTF-8, empty, or a header that has none of ``known``.
    """
    has_quotes = _check_text(path)
    headers = list(_headers(path))
    delimiter, header = max(headers, key=lambda h: (len(set(known) & set(h[1])), len(h[1])))
    if not set(known) & set(header):
        # The line may be a row of customer data, so it is not shown.
        raise UnreadableError(
            f"has none of the columns {', '.join(known)} in its first line",
            "The first line must hold the names of the columns, with "
            f"{', '.join(DELIMITERS.values())} between them.",
        )
    rows = None
    if has_quotes:
        rows = 0
        for rows, _ in _rows(path, delimiter, single=len(header) == 1):  # noqa: B007 - the last one
            pass
    return CsvFile(path=path, delimiter=delimiter, header=header, rows=rows)


def _headers(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    for delimiter in DELIMITERS:
        fields: list[str] = []
        with path.open(encoding="utf-8-sig", newline="") as file, contextlib.suppress(csv.Error):
            fields = next((r for r in csv.reader(file, delimiter=delimiter) if r), [])
        yield delimiter, tuple(name.strip() for name in fields)


def _rows(path: Path, delimiter: str, *, single: bool) -> Iterator[tuple[int, int]]:
    """Yield number and first line of each row of data, both from 1.

    A blank line is a row only in a file of a ``single`` column.
    """
    row, next_line = -1, 1
    with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            for record in reader:
                line, next_line = next_line, reader.line_num + 1
                if record or (single and row >= 0):
                    row += 1
                    if row:
                        yield row, line
        except csv.Error as error:
            raise UnreadableError(
                "has a row whose quotes do not match", QUOTES_REMEDY, first_line=next_line
            ) from error


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_text(path: Path) -> bool:
    """Return whether ``path`` holds a double quote; raise UnreadableError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, has_quotes, empty = 1, False, True
    with path.open("rb") as file:
        for chunk in _chunks(file):
            if empty and chunk.startswith(_UTF16):
                raise UnreadableError(
                    "is UTF-16 text", "Save it as UTF-8, the only encoding accepted."
                )
            empty = False
            pending = decoder.getstate()[0]
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line = lines + (pending + chunk).count(b"\n", 0, error.start)
                raise UnreadableError(
                    "is not UTF-8 text",
                    "Save it as UTF-8, for instance with `iconv -f WINDOWS-1252 -t UTF-8`.",
                    first_line=line,
                ) from None
            lines += chunk.count(b"\n")
            has_quotes = has_quotes or b'"' in chunk
    if decoder.getstate()[0]:
        raise UnreadableError("ends within a character", "Export it again.", first_line=lines)
    if empty:
        raise UnreadableError("is empty", "Its first line must hold the names of the columns.")
    return has_quotes


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def line_at(path: Path, offset: int) -> int:
    """Return the line, from 1, of the first byte at or after ``offset`` that is no line break."""
    line, position = 1, 0
    with path.open("rb") as file:
        for chunk in _chunks(file):
            before = chunk[: max(offset - position, 0)]
            line += before.count(b"\n")
            rest = chunk[len(before) :]
            breaks = rest[: len(rest) - len(rest.lstrip(b"\r\n"))]
            line += breaks.count(b"\n")
            if len(breaks) < len(rest):
                break
            position += len(chunk)
    return line


def lines_of_rows(file: CsvFile, rows: Collection[int]) -> dict[int, int]:
    """Return the line, from 1, on which each of ``rows`` (from 1) begins.

    Lines and rows part where a value holds a line break and where lines are blank.
    """
    numbered = _rows(file.path, file.delimiter, single=len(file.header) == 1)
    within = itertools.takewhile(lambda place: place[0] <= max(rows), numbered)
    return {row: line for row, line in within if row in rows}
