"""The seam between tables and training: what a task must say about itself.

Shape suffixes: E examples, F numeric features, K outputs of the head.
"""

import datetime as dt
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.objective import Binary, Objective

__all__ = [
    "AsksAt",
    "DescribesCustomers",
    "Examples",
    "ListsProducts",
    "Task",
    "Traits",
    "keys_of",
    "numbered",
    "own_settings",
]

_YES_OR_NO = Binary()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """Examples of one silo. Row i of every field speaks of the same example."""

    text: list[str]
    """What is asked about. An encoder's states are pooled over these tokens only."""
    context: list[str]
    """What the text is read in the light of: attended to, cut first when too long."""
    numeric_EF: NDArray[np.float32]
    """Features in [0, 1], scaled by public constants: nothing is fitted on private data."""
    label_EK: NDArray[np.float32]
    """As the objective reads them."""
    user_E: NDArray[np.int64]
    """Index of the user, the unit of privacy; 0 to users - 1."""
    visit_E: NDArray[np.int64]
    """Index of the visit: examples of one visit are ranked against each other."""
    group: list[str]
    """What a simple method would count by: the promoted category, the kind of customer."""
    test_E: NDArray[np.bool_]
    """True where the example lies after the time split."""
    objective: Objective = _YES_OR_NO
    """What the labels mean, and the loss of a head that predicts them."""
    keys: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What names a row to its merchant, columns by name: ``user_id`` (the keyed hash of the silo
    folder), the visit or date, the item or promotion. Training does not read it."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def users(self) -> int:
        """Number of distinct users. Private: it must not leave the silo un-noised."""
        return int(np.unique(self.user_E).size)

    def rows(self, *, test: bool) -> NDArray[np.int64]:
        """Indices of the rows before (``test=False``) or after the split."""
        return np.flatnonzero(self.test_E == test)


class Task(Protocol):
    """One job of the model: examples from tables, outputs and numeric features of the head."""

    @property
    def name(self) -> str:
        """Name in scenarios, requests and run folders."""
        ...

    @property
    def objective(self) -> Objective:
        """Loss, meaning of the outputs, metrics."""
        ...

    @property
    def outputs(self) -> int:
        """Outputs of the head, K."""
        ...

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Names of the numeric features, F of them."""
        ...

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """What a merchant would use instead: keys of `simulations.baselines.METHODS`."""
        ...

    def public_texts(self) -> list[str]:
        """Texts like those of the task, made up: no merchant's data, the same everywhere."""
        ...

    def build(self, silo: SiloFolder) -> Examples:
        """Turn a silo's tables into examples. Raises DataError when there are none."""
        ...


@runtime_checkable
class AsksAt(Protocol):
    """A task that can be asked about a date whose future nobody knows yet."""

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Return what can be asked on ``date``, all of it test rows, their labels NaN.

        No event at or after ``date`` is read (`silotune.tables.as_of`).

        Args:
            silo: of one merchant.
            date: UTC, without zone.
            most: questions per customer, at most: about what they took most often before, then
                about what a hash draws for them. None: everything there is to ask.

        Raises:
            NoExamplesError: nothing can be asked on that date.
        """
        ...


@runtime_checkable
class ListsProducts(Protocol):
    """A task whose examples are products: every product of a merchant can be described."""

    def products(self, silo: SiloFolder) -> Examples:
        """Return every product of the merchant once, labels NaN; no user is read.

        A product's ``group`` is its name, its row is a test row where that is held out from
        training at every merchant. Keys: ``item_id``, ``title``, ``category``, and others.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Traits:
    """Customers of one silo in words, row i of every field the same one. Private, as tables are."""

    user_id: list[str]
    """Keyed hashes of the silo folder, each once."""
    words: Mapping[str, Sequence[str]]
    """By trait, each customer's band of it; the bands are public and the same everywhere."""
    habits: list[list[str]]
    """Categories that the customer usually buys from."""


@runtime_checkable
class DescribesCustomers(AsksAt, Protocol):
    """A task that asks once about each customer, and can say in words what a customer is like."""

    def made_up(self) -> Examples:
        """Return customers of nobody over the whole range of what is asked; all public."""
        ...

    def traits_at(self, silo: SiloFolder, date: dt.datetime) -> Traits:
        """Return the customers that ``build_at`` asks about, in its order. Raises DataError."""
        ...


def keys_of(rows: Sequence[Mapping[str, Any]], *columns: str) -> dict[str, list[Any]]:
    """Return `Examples.keys` from the rows that examples were made of, by their own columns."""
    return {column: [row[column] for row in rows] for column in columns}


def numbered(values: Iterable[Hashable]) -> NDArray[np.int64]:
    """Return the number of each value, (E,): 0, 1, … in the order of their first appearance.

    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    listed = list(values)
    number = {value: n for n, value in enumerate(dict.fromkeys(listed))}
    return np.array([number[value] for value in listed], dtype=np.int64)


def own_settings(silo: SiloFolder, task: str) -> Path:
    """Return where a merchant's own settings of a task lie, which the federation never sees."""
    return silo.path / "tasks" / f"{task}.toml"
