"""Scored customers whose outcome is known: what quality by group is computed from, kept small.

Shape suffixes: E examples, U customers, K outputs of the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.score import Scored
from silotune.errors import ConfigError
from silotune.tasks.objective import Objective

__all__ = ["OutcomeRows", "Outcomes"]

_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """What a model said of some customers and what happened: small, without any words."""

    objective: Objective
    names_U: NDArray[np.str_]
    """Keyed hashes, each once."""
    user_E: _Ints
    """Index into them."""
    visit_E: _Ints
    """Index of the visit: rows of one customer that have it are ranked against each other."""
    label_EK: NDArray[np.float32]
    logit_EK: NDArray[np.float32]

    @classmethod
    def of(cls, scored: Scored) -> "Outcomes":
        """Return what is needed of a part.

        Raises:
            ConfigError: its outcomes are not known, or its rows are nobody's.
        """
        examples, rows = scored.examples, scored.rows
        if scored.date is not None:
            raise ConfigError(
                "quality by group needs outcomes; score the task's own test examples."
            )
        if "user_id" not in examples.keys:
            raise ConfigError(
                "quality by group: the task does not say whose its examples are (Examples.keys). "
                "Leave it out with --no-groups."
            )
        names_E = np.array([examples.keys["user_id"][row] for row in rows], dtype=np.str_)
        names_U, user_E = np.unique(names_E, return_inverse=True)
        return cls(
            objective=examples.objective,
            names_U=names_U,
            user_E=user_E,
            visit_E=examples.visit_E[rows],
            label_EK=examples.label_EK[rows],
            logit_EK=scored.logit_EK,
        )


class OutcomeRows:
    """Rows of all parts sorted by customer, and the metric of any draw of customers."""

    def __init__(self, parts: Sequence[Outcomes]) -> None:
        """Join ``parts``, one at least. A customer is in one of them; in which changes nothing."""
        self.objective = parts[0].objective
        names = np.concatenate([p.names_U for p in parts])
        self.names_U, place = np.unique(names, return_inverse=True)
        starts = np.cumsum([0, *(len(p.names_U) for p in parts)])
        user_E = place[np.concatenate([p.user_E + n for p, n in zip(parts, starts, strict=False)])]
        self._order_E = np.argsort(user_E, kind="stable")
        self._size_U = np.bincount(user_E, minlength=len(self.names_U))
        self._start_U = np.cumsum(self._size_U) - self._size_U
        self._label_EK = np.concatenate([p.label_EK for p in parts])
        self._logit_EK = np.concatenate([p.logit_EK for p in parts])
        # Parts count from 0 each, and customers are told apart by `value`.
        self._visit_E = np.concatenate([p.visit_E for p in parts])
        self._visits = int(self._visit_E.max()) + 1

    def value(self, users: _Ints) -> float:
        """Return the main metric of the rows of ``users``, who may be in it several times."""
        size = self._size_U[users]
        copy_E = np.repeat(np.arange(len(users)), size)
        within_E = np.arange(len(copy_E)) - np.repeat(np.cumsum(size) - size, size)
        rows = self._order_E[np.repeat(self._start_U[users], size) + within_E]
        # A customer drawn twice has every visit twice, not visits of twice the length.
        visit_E = copy_E * self._visits + self._visit_E[rows]
        found = self.objective.quality(self._label_EK[rows], self._logit_EK[rows], visit_E)
        return found[self.objective.main]
