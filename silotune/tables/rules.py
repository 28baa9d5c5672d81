"""What every row must satisfy, as SQL conditions over a staged table.

A rule's condition is true for a row that breaks it. An empty value breaks no rule but the one
against empty values, so that one fault is reported once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from silotune.tables.casts import quoted
from silotune.tables.problems import Severity
from silotune.tables.schema import EVENTS, PROMOTIONS, RATE, Column
from silotune.tables.staged_table import FAILED, StagedTable

__all__ = ["Rule", "row_rules"]

_KINDS = {
    "number": ("numbers", "Write them with a decimal point and without signs for money or groups."),
    "time": ("times", "Write them as 2024-05-31T18:30:00, in UTC or with an offset (+02:00)."),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that can be wrong with a row."""

    column: str | None
    broken: str
    """SQL condition of the rows that break it."""
    message: str
    """What is wrong; ``{n}`` is the number of rows and ``{s}`` the plural's ending."""
    remedy: str
    sample: str = "NULL"
    """SQL of the value to show; never from a column that tells customers apart."""
    severity: Severity = "error"


def row_rules(staged: StagedTable) -> Iterator[Rule]:
    """Yield the rules for the columns that ``staged`` has; ``$now`` is the current time, UTC."""
    present = set(staged.present)
    for column in staged.table.columns:
        if column.name in present:
            yield from _column_rules(column)
    if staged.table is EVENTS:
        yield from _event_rules(present)
        if "kind" in present:
            yield from _rating_rules(staged)
    if staged.table is PROMOTIONS:
        yield from _promotion_rules(present)


def _column_rules(column: Column) -> Iterator[Rule]:
    name, failed = quoted(column.name), quoted(column.name + FAILED)
    empty = f"{name} IS NULL"
    if column.kind != "text":
        what, remedy = _KINDS[column.kind]
        empty += f" AND {failed} IS NULL"
        yield Rule(
            column=column.name,
            broken=f"{failed} IS NOT NULL",
            message=f"has {{n}} value{{s}} other than {what}",
            remedy=remedy,
            sample=failed,
        )
    if column.required:
        yield Rule(
            column=column.name,
            broken=empty,
            message="has {n} empty value{s}",
            remedy="Fill or drop them.",
        )
    if column.kind == "number":
        yield from _number_rules(column)
    if column.kind == "time":
        yield from _time_rules(column)
    if column.allowed:
        allowed = ", ".join(f"'{value}'" for value in column.allowed)
        yield Rule(
            column=column.name,
            broken=f"{name} NOT IN ({allowed})",
            message="has {n} unknown value{s}",
            remedy=f"Known: {', '.join(column.allowed)}.",
            sample=name,
        )


def _number_rules(column: Column) -> Iterator[Rule]:
    name = quoted(column.name)
    yield Rule(
        column=column.name,
        broken=f"NOT isfinite({name})",
        message="has {n} infinite or NaN value{s}",
        remedy="Leave unknown values empty.",
        sample=name,
    )
    if column.minimum is not None and column.maximum is not None:
        yield Rule(
            column=column.name,
            broken=f"isfinite({name}) AND {name} NOT BETWEEN {column.minimum} AND {column.maximum}",
            message=f"has {{n}} value{{s}} outside {column.minimum:g} to {column.maximum:g}",
            remedy="Write 20% as 0.2.",
            sample=name,
        )
    elif column.minimum == 0:
        yield Rule(
            column=column.name,
            broken=f"isfinite({name}) AND {name} < 0",
            message="has {n} negative value{s}",
            remedy="Leave returns and corrections out.",
            sample=name,
        )


def _time_rules(column: Column) -> Iterator[Rule]:
    name = quoted(column.name)
    yield Rule(
        column=column.name,
        broken=f"{name} < TIMESTAMP '1990-01-01'",
        message="has {n} value{s} before 1990",
        remedy="Such times are most often a default or a number in the wrong unit: fix or drop.",
        sample=name,
    )
    yield Rule(
        column=column.name,
        # Infinity too. Python, and with it everything downstream, knows no later year.
        broken=f"{name} >= TIMESTAMP '10000-01-01'",
        message="has {n} value{s} after the year 9999",
        remedy="For a promotion without an end write 9999-12-31.",
    )


def _event_rules(present: set[str]) -> Iterator[Rule]:
    if "time" in present:
        yield Rule(
            column="time",
            broken="time > $now AND time < TIMESTAMP '10000-01-01'",
            message="has {n} value{s} in the future",
            remedy="Times are UTC; write the offset (+02:00) where they are not, or fix the clock.",
            sample="time",
        )
    if {"price", "discount"} <= present:
        yield Rule(
            column="discount",
            # NaN is larger than everything here and has a rule of its own.
            broken="isfinite(discount) AND discount > price",
            message="has {n} value{s} above 'price'",
            remedy="Both are money per unit, and 'price' is the one before the discount.",
            sample="discount",
        )


def _rating_rules(staged: StagedTable) -> Iterator[Rule]:
    # A column of the wrong type is told of already, and so is a value that is no number.
    if "rating" in staged.present or not any("rating" in part.columns for part in staged.parts):
        yield Rule(
            column="rating",
            broken=f"kind = '{RATE}' AND rating IS NULL AND {quoted('rating' + FAILED)} IS NULL",
            message="is empty in {n} row{s} of kind 'rate'",
            remedy="Write what the customer gave, or drop the rows.",
        )
    yield Rule(
        column="rating",
        broken=f"kind <> '{RATE}' AND rating IS NOT NULL",
        message="has {n} value{s} in rows of another kind than 'rate'",
        remedy="A rating is an event of its own: kind rate, at the time it was given.",
        sample="rating",
    )


def _promotion_rules(present: set[str]) -> Iterator[Rule]:
    if {"start", "end"} <= present:
        yield Rule(
            column="end",
            broken='"end" <= start',
            message="has {n} value{s} not later than 'start'",
            remedy="It is the first moment after the promotion: for one day, the next midnight.",
            sample='"end"',
        )
    yield Rule(
        column=None,
        broken="item_id IS NULL AND category IS NULL",
        message="has {n} row{s} with neither 'item_id' nor 'category'",
        remedy="Say what is promoted: one of the two.",
    )
    yield Rule(
        column=None,
        broken="item_id IS NOT NULL AND category IS NOT NULL",
        message="has {n} row{s} with both 'item_id' and 'category'",
        remedy="Keep one: the item, or the category where all of it is promoted.",
    )
