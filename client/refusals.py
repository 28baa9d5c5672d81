"""What an aggregator is told when a silo does not answer: fixed words, nothing computed.

An exception's own text may hold a row. It goes into the silo's log if silotune raised it on
purpose, and nowhere otherwise.
"""

import logging
from pathlib import Path

from client.silo_log import append
from client.tally import count_refusal
from silotune.errors import (
    BudgetError,
    ConfigError,
    EgressError,
    LedgerError,
    MessageError,
    PolicyError,
    PrivacyError,
)
from silotune.logs import why

__all__ = ["WORDS", "note", "refusal"]

_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (PolicyError, "refused by the policy"),
    (BudgetError, "refused by the budget"),
    (LedgerError, "refused by the ledger"),
    (EgressError, "stopped at the gate"),
    (PrivacyError, "refused: not private"),
    (MessageError, "refused: not a valid request"),
    (ConfigError, "refused: not a valid request"),
)
_FAILED = "failed; the silo's log says why"
_LIMITS = frozenset(
    {
        "delta",
        "server",
        "run",
        "round",
        "task",
        "base_digest",
        "private",
        "noise",
        "noise_multiplier",
        "clip_norm",
        "sampling_rate",
        "steps",
        "examples_per_user",
        "metrics",
        "mechanism",
    }
)
WORDS = frozenset({words for _, words in _REFUSALS} | {_FAILED})
"""Every reply that a refusal can begin with."""


def refusal(error: Exception) -> str:
    """Return the words for ``error``: of a fixed set, and of a policy the limits' names."""
    for kind, words in _REFUSALS:
        if isinstance(error, kind):
            limits = sorted(_LIMITS.intersection(getattr(error, "limits", ())))
            return f"{words} ({', '.join(limits)})" if limits else words
    return _FAILED


def note(error: Exception, log: Path) -> None:
    """Append what happened to the silo's own log: time, kind, place, and words without data.

    The words of an error that silotune did not raise on purpose may hold a value of a row.
    They are left out; its place in the code is told.
    """
    count_refusal(log.parent, refusal(error))
    append(log, "refused", logging.WARNING, reply=refusal(error), **why(error))
