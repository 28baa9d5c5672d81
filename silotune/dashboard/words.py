"""Numbers and times as people read them. Templates see every function."""

import math
import time

__all__ = ["clock", "counted", "day", "duration", "epsilon", "fixed", "remainder", "size", "spread"]

_NONE = "–"


def clock(seconds: float) -> str:
    """Return a time, UTC; seconds since 1970.

    >>> clock(0.0)
    '1970-01-01 00:00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def day(seconds: float) -> str:
    """Return the day of a time, UTC.

    >>> day(86400.0)
    '1970-01-02'
    """
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def duration(seconds: float | None) -> str:
    """Return a span of time.

    >>> duration(3.21), duration(75), duration(7300), duration(None)
    ('3.2 s', '1 min 15 s', '2 h 1 min', '–')
    """
    if seconds is None:
        return _NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Return a number of bytes.

    >>> size(0), size(900), size(57_000), size(2_500_000)
    ('0 B', '900 B', '57.0 kB', '2.5 MB')
    """
    if count is None:
        return _NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def epsilon(value: float | None) -> str:
    """Return an ε: three decimals, rounded up, since it is a bound.

    >>> epsilon(1.2341), epsilon(None)
    ('1.235', '–')
    """
    return _NONE if value is None else f"{math.ceil(round(value * 1000, 6)) / 1000:.3f}"


def remainder(value: float | None) -> str:
    """Return what is left of an ε: three decimals, rounded down.

    >>> remainder(1.2349), remainder(0.0), remainder(None)
    ('1.234', '0.000', '–')
    """
    return _NONE if value is None else f"{math.floor(round(value * 1000, 6)) / 1000:.3f}"


def fixed(value: float | None, digits: int = 3) -> str:
    """Return a number; a dash where there is none.

    >>> fixed(0.51234), fixed(None)
    ('0.512', '–')
    """
    return _NONE if value is None else f"{value:.{digits}f}"


def spread(value: float | None, error: float | None) -> str:
    """Return an estimate and its standard error; words where the noise hides it.

    >>> spread(0.5, 0.25), spread(None, None)
    ('0.500 ± 0.250', 'hidden by noise')
    """
    if value is None or error is None:
        return "hidden by noise"
    return f"{value:.3f} ± {error:.3f}"


def counted(number: int, word: str) -> str:
    """Return a number with its word.

    >>> counted(1, "round"), counted(2, "round")
    ('1 round', '2 rounds')
    """
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
