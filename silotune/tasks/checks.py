"""What holds of the parameters of every task: times in order, counts of at least one."""

import datetime as dt

from silotune.errors import ConfigError

__all__ = ["check_counts", "check_horizon", "check_huber", "check_slate", "check_span"]


def check_counts(task: object, *fields: str) -> None:
    """Check that each of ``fields`` of ``task`` is at least 1. Raises ConfigError."""
    for field in fields:
        if getattr(task, field) < 1:
            raise ConfigError(f"{field} is {getattr(task, field)}; it must be at least 1.")


def check_huber(delta: float) -> None:
    """Check the ``huber_delta`` of labels in [0, 1]. Raises ConfigError."""
    if not 0 < delta <= 1:
        raise ConfigError(f"huber_delta is {delta}; it must be in (0, 1].")


def check_slate(habits: int, slate: int) -> None:
    """Check that of a slate no more are habits than it holds. Raises ConfigError."""
    if not 0 <= habits <= slate:
        raise ConfigError(f"habits is {habits}; it must lie between 0 and slate, {slate}.")


def check_span(first: dt.datetime, split: dt.datetime, last: dt.datetime) -> None:
    """Check that visits to train and to test on lie between times in order.

    Raises:
        ConfigError: a time with a zone, or times out of order; names the field.
    """
    _check_zones(first, split, last)
    if not first < split < last:
        raise ConfigError(
            f"first, split, last are {first}, {split}, {last}; they must follow one another."
        )


def check_horizon(
    first: dt.datetime, split: dt.datetime, last: dt.datetime, horizon_days: int
) -> None:
    """Check that the days that make a label end by the split, or by the end.

    Raises:
        ConfigError: a time with a zone, or times out of order; names the field.
    """
    _check_zones(first, split, last)
    horizon = dt.timedelta(days=horizon_days)
    for field, begin, end in (("first", first, split), ("split", split, last)):
        if not begin + horizon <= end:
            raise ConfigError(
                f"{field} is {begin}; the {horizon_days} days of horizon_days after it "
                f"must end by {end}."
            )


def _check_zones(first: dt.datetime, split: dt.datetime, last: dt.datetime) -> None:
    for field, moment in (("first", first), ("split", split), ("last", last)):
        if moment.tzinfo is not None:
            raise ConfigError(f"{field} is {moment}; leave out the zone: the tables are in UTC.")
