"""What holds of every task that looks at customers from dates of a public calendar."""

import datetime as dt

from silotune.errors import ConfigError

__all__ = ["check_dates"]


def check_dates(
    first: dt.datetime, split: dt.datetime, last: dt.datetime, horizon_days: int
) -> None:
    """Check that the days that make a label end by the split, or by the end.

    Raises:
        ConfigError: a time with a zone, or times out of order; names the field.
    """
    for field, moment in (("first", first), ("split", split), ("last", last)):
        if moment.tzinfo is not None:
            raise ConfigError(f"{field} is {moment}; leave out the zone: the tables are in UTC.")
    horizon = dt.timedelta(days=horizon_days)
    for field, begin, end in (("first", first, split), ("split", split, last)):
        if not begin + horizon <= end:
            raise ConfigError(
                f"{field} is {begin}; the {horizon_days} days of horizon_days after it "
                f"must end by {end}."
            )
