"""Records of a run: their kinds, and what makes one malformed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "ROUND_METRICS", "SCORE_METRICS", "Record", "plain", "problem_of"]

SCORE_METRICS = (
    "auc",
    "log_loss",
    "calibration_error",
    "accuracy",
    "mae",
    "rmse",
    "ndcg",
    "recall",
)
"""Every metric that a `silotune.tasks.objective.Objective` may give."""
ROUND_METRICS = ("auc", "log_loss", "mae")
"""Those that are followed from round to round."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """Fields of one kind of record. Others are kept as they are."""

    needs: Mapping[str, type]
    may: tuple[str, ...] = ()
    """Numbers that may be missing or null: it could not be computed."""


_OF_ARM: dict[str, type] = {"seed": int, "arm": str}
KINDS: Mapping[str, _Kind] = {
    # Final quality of an arm on one merchant's test rows.
    "score": _Kind(
        needs=_OF_ARM | {"merchant": str},
        may=SCORE_METRICS,
    ),
    # Means over merchants after a round, bytes over all merchants. Rounds count from 0.
    # `merchants`, a list of names, says which took part in the means; without it: all.
    "round": _Kind(
        needs=_OF_ARM | {"round": int},
        may=(*ROUND_METRICS, "seconds", "bytes_up", "bytes_down", "replies", "failures"),
    ),
    # What a user of this merchant has spent after a round. Null ε: no bound.
    "privacy": _Kind(needs=_OF_ARM | {"merchant": str, "round": int}, may=("epsilon", "delta")),
    # What the federation measured privately after a round, one record for each figure, beside
    # what only a simulation knows. Null: too little to tell from noise.
    "private-metrics": _Kind(
        needs=_OF_ARM | {"round": int, "metric": str},
        may=(
            "value",
            "standard_error",
            "low",
            "low_error",
            "high",
            "high_error",
            "noiseless",
            "noiseless_low",
            "noiseless_high",
            "exact",
            "noise_multiplier",
            "replies",
        ),
    ),
    # Quality of an arm on a part of one merchant's test rows: of one task, of customers with
    # little history, of older weeks. `metric` is the one that is shown.
    "part": _Kind(
        needs=_OF_ARM | {"merchant": str, "by": str, "part": str, "metric": str},
        may=(*SCORE_METRICS, "rows"),
    ),
    # Bins of (mean score, rate of positives, rows) over all merchants' test rows.
    "calibration": _Kind(needs=_OF_ARM | {"bins": list}),
    "event": _Kind(needs={"message": str}),
}
"""Kinds of records that are checked. A record of any other kind is kept and not looked into."""


def problem_of(record: object) -> str | None:
    """Return what is wrong with a record, if anything."""
    if not isinstance(record, dict):
        return "is no JSON object"
    if not isinstance(record.get("kind"), str):
        return "'kind' is missing"
    kind = KINDS.get(record["kind"])
    if kind is None:
        return None
    for field, expected in kind.needs.items():
        value = record.get(field)
        if not isinstance(value, expected) or isinstance(value, bool):
            return f"'{field}' must be {_WORDS[expected]}, and is {value!r}"
    for field in kind.may:
        value = record.get(field)
        if value is not None and not _is_number(value):
            return f"'{field}' must be a number or null, and is {value!r}"
    if record["kind"] == "calibration" and not all(map(_is_bin, record["bins"])):
        return "'bins' must hold lists of three numbers"
    merchants = record.get("merchants", []) if record["kind"] == "round" else []
    if not (isinstance(merchants, list) and all(isinstance(name, str) for name in merchants)):
        return "'merchants' must be a list of names"
    return None


_WORDS = {int: "a whole number", str: "a text", list: "a list"}


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A comparison, since isfinite raises on an integer beyond all floats.
    return number and -1e300 < value < 1e300  # type: ignore[operator]  # a number, by then


def _is_bin(value: object) -> bool:
    numbers = isinstance(value, list) and all(v is None or _is_number(v) for v in value)
    return numbers and len(value) == 3  # type: ignore[arg-type]  # a list, by the line before


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: NumPy numbers, paths and dates included."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy and torch
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    # A path may hold bytes that no UTF-8 file can.
    return str(value).encode("utf-8", "replace").decode()
