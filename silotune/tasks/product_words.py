"""A product as its merchant describes it: words and bounded numbers. Every scale is public."""

import math
import re
from typing import Any

from silotune.tasks.promotion_words import WARES

__all__ = ["NUMERIC", "context_of", "numeric_of", "public_texts", "text_of"]

NUMERIC = ("has_size", "amount", "by_count", "by_volume")

_WORDS = 32
"""Of a title, at most: what a model reads of it."""
_AMOUNT = re.compile(r"(?:(\d+)\s+)?(\d+)/(\d+)|(\d+(?:[.,]\d+)?)")
# In grams and millilitres, which count alike: what matters is small or large.
_UNITS = {
    "weight": {"g": 1.0, "gr": 1.0, "kg": 1000.0, "mg": 0.001, "oz": 28.35, "lb": 453.6},
    "volume": {"ml": 1.0, "cl": 10.0, "l": 1000.0, "lt": 1000.0, "ltr": 1000.0, "liter": 1000.0}
    | {"fl": 29.57, "pt": 473.2, "qt": 946.4, "gal": 3785.0, "ga": 3785.0},
    "count": dict.fromkeys(("ct", "pk", "pack", "pc", "pcs", "count", "rolls", "loads"), 1.0),
}
_LARGEST = 10_000.0
_QUALITIES = ("organic", "fresh", "frozen", "small", "family pack", "for kids", "premium")


def text_of(row: dict[str, Any]) -> str:
    """Return what is classified: the title, without the size that stands at its end."""
    return " ".join(str(row["title"]).split()[:_WORDS])


def context_of(row: dict[str, Any]) -> str:
    """Return what the title is read in the light of: brand and size."""
    return f"brand: {row['brand'] or 'unknown'}. size: {row['size'] or 'unknown'}"


def numeric_of(row: dict[str, Any]) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of the size as it is printed.

    >>> [round(n, 2) for n in numeric_of({"size": "1 1/2 l"})]
    [1.0, 0.79, 0.0, 1.0]
    >>> numeric_of({"size": None})
    [0.0, 0.0, 0.0, 0.0]
    """
    size = str(row["size"] or "").lower()
    number = _AMOUNT.search(size)
    amount = _value(number) if number else 0.0
    unit = re.search(r"[a-z]+", size[number.end() :] if number else size)
    kind, factor = "", 1.0
    for name, units in _UNITS.items():
        if unit and unit[0] in units:
            kind, factor = name, units[unit[0]]
    scaled = math.log1p(min(_LARGEST, amount * factor)) / math.log1p(_LARGEST)
    return [float(bool(size)), scaled, float(kind == "count"), float(kind == "volume")]


def _value(found: re.Match[str]) -> float:
    whole, upper, lower, plain = found.groups()
    if plain:
        return float(plain.replace(",", "."))
    return float(whole or 0) + float(upper) / max(1.0, float(lower))


def public_texts() -> list[str]:
    """Return made-up titles, like those of many kinds of shop."""
    return [
        *WARES,
        *(f"{_QUALITIES[i % len(_QUALITIES)]} {ware}" for i, ware in enumerate(WARES)),
        *(f"{ware}, {WARES[(7 * i + 1) % len(WARES)]}" for i, ware in enumerate(WARES)),
    ]
