"""From the types that a source has to the types of the schema, in SQL.

A value that cannot be converted becomes NULL in its column and is kept, shortened, in a second
column beside it, so that one pass over the source both types it and remembers what failed.
"""

from dataclasses import dataclass

from silotune.tables.schema import Column

__all__ = ["Cast", "attribute_cast", "cast", "quoted"]

SAMPLE_CHARACTERS = 40

_BLANKS = r"E' \t\r\n\f\x0B'"
"""Characters that do not make a text non-empty, as SQL."""

_INTEGERS = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
}
_FRACTIONS = {"FLOAT", "DOUBLE", "DECIMAL"}
_TEXTS = {"VARCHAR", "ENUM", "UUID"}
_ZONED = "TIMESTAMP WITH TIME ZONE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """SQL expressions over a source's row."""

    value: str
    """The typed value, or NULL."""
    failed: str | None = None
    """Start of the source's value where it is there but not of the type; None: cannot happen."""


def quoted(name: str) -> str:
    """Return ``name`` as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def cast(column: Column, source_type: str) -> Cast | None:
    """Return how ``column`` is read from a value of DuckDB's ``source_type``; None: not at all.

    Text takes text and whole numbers (fractions too, unless it is an id: 17 and 17.0 would be
    two ids). Numbers take numbers and text. Times take timestamps, dates and text; a zone or an
    offset is converted to UTC, its absence means UTC. A whole number is no time: seconds,
    milliseconds and days cannot be told apart.
    """
    base = source_type.split("(")[0].strip()
    name = quoted(column.name)
    # 'ENUM' and 'DECIMAL' carry brackets; an array of texts ends in some and is no text.
    if source_type.endswith("]"):
        return None
    is_id = column.name.endswith("_id")
    if column.kind == "text":
        if base in _TEXTS or base in _INTEGERS or (base in _FRACTIONS and not is_id):
            return Cast(value=_text(name))
    elif column.kind == "number":
        if base in _INTEGERS or base in _FRACTIONS:
            return Cast(value=f"CAST({name} AS DOUBLE)")
        if base in _TEXTS:
            return _parsed(name, _tried(name, "DOUBLE"))
    elif base.startswith("TIMESTAMP") or base == "DATE":
        # The connection's zone is UTC, so that a zoned time loses its zone as UTC.
        return _parsed(name, f"TRY_CAST({name} AS TIMESTAMP)")
    elif base in _TEXTS:
        return _parsed(name, f"TRY_CAST({_tried(name, _ZONED)} AS TIMESTAMP)")
    return None


def attribute_cast(name: str) -> Cast:
    """Return how a user's attribute of any type becomes text."""
    return Cast(value=_text(quoted(name)))


def _trimmed(name: str) -> str:
    return f"trim(CAST({name} AS VARCHAR), {_BLANKS})"


def _tried(name: str, kind: str) -> str:
    # Trimming costs more than the cast, and hardly any value needs it.
    return f"coalesce(TRY_CAST({name} AS {kind}), TRY_CAST({_trimmed(name)} AS {kind}))"


def _filled(name: str) -> str:
    # The first half is true of nearly all texts and costs next to nothing; '!' follows the blank.
    return f"(CAST({name} AS VARCHAR) >= '!' OR {_trimmed(name)} <> '')"


def _text(name: str) -> str:
    # CSV cannot tell an empty text from none: the same holds for every source.
    return f"CASE WHEN {_filled(name)} THEN CAST({name} AS VARCHAR) END"


def _parsed(name: str, value: str) -> Cast:
    kept = f"left({_trimmed(name)}, {SAMPLE_CHARACTERS})"
    failed = f"CASE WHEN {value} IS NULL AND {_filled(name)} THEN {kept} END"
    return Cast(value=value, failed=failed)
