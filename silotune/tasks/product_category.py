"""Product category: to which of the federation's public classes does this product belong?

Merchants sort what they sell in ways of their own. Each maps its categories to the public
classes (`silotune.tasks.category_map`); what it does not map stays with it. What is tested are
products whose names no training row of any merchant holds: a digest of the public name decides.
"""

import datetime as dt
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from silotune.config import config
from silotune.errors import ConfigError, NoExamplesError
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of, numbered, own_settings
from silotune.tasks.category_map import LOCAL, category_paths
from silotune.tasks.checks import check_counts, check_span
from silotune.tasks.objective import Classes
from silotune.tasks.product_sql import CATALOGUE, STATEMENTS
from silotune.tasks.product_words import NUMERIC, context_of, numeric_of, text_of
from silotune.tasks.product_words import public_texts as made_up_texts
from silotune.tasks.sql_run import rows_of

__all__ = ["ProductCategory"]

_KINDS = {
    "purchase": ["purchase", "redeem"],
    "any": ["view", "click", "cart", "purchase", "redeem"],
}
# Departments that the stores of Complete Journey sell from every day.
_DEPARTMENTS = (
    "grocery",
    "drug general merchandise",
    "produce",
    "meat",
    "meat-packaged",
    "deli",
    "pastry",
    "nutrition",
    "seafood-packaged",
)
_DIGITS = 8
"""Hexadecimal digits of a name's digest that are held against the share."""


@config
class ProductCategory:
    """Parameters of the task. All are public; none depends on a silo's data."""

    name: Literal["product-category"] = "product-category"
    first: dt.datetime
    """What was taken before it is no example."""
    split: dt.datetime
    """What is taken before it trains; what is taken from it on, and is held out, tests."""
    last: dt.datetime
    """What is taken from it on is no example."""
    classes: tuple[str, ...] = _DEPARTMENTS
    """The federation's public classes, in the order of the outputs."""
    category_level: int = 1
    """Where a merchant has no mapping of its own: the level of its category path whose name
    may be that of a class. 1 is the widest."""
    classes_held: int | None = None
    """Without a mapping of its own, a merchant takes part in so many of the classes, drawn by a
    digest of its public name: a simulation of shops that sell different things. None: in all."""
    held_out: float = 0.4
    """Share of the names that are tested on, and never trained on at any merchant."""
    event: Literal["purchase", "any"] = "purchase"
    """What makes a product a user's: purchases, or views, clicks and carts as well."""
    named: bool = False
    """Whether products whose title holds the name of their class are examples. Without them no
    class can be read off."""
    train_products: int = 12
    """Products per user before the split, of every class in turn. A cap per user, never over
    users."""
    test_products: int = 16
    """Products per user after the split."""
    seed: int = 0
    """Chooses the names that are held out, and products, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        check_counts(self, "category_level", "train_products", "test_products")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes is {self.classes}; give two or more different names.")
        if LOCAL in self.classes:
            raise ConfigError("classes holds an empty name; give each class one.")
        if self.classes_held is not None and not 2 <= self.classes_held <= len(self.classes):
            raise ConfigError(
                f"classes_held is {self.classes_held}; it must lie between 2 and the number of "
                f"classes, {len(self.classes)}."
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; it must lie between 0 and 1.")

    @property
    def objective(self) -> Classes:
        """One of the federation's classes."""
        return Classes(names=self.classes)

    @property
    def outputs(self) -> int:
        """One logit for each class."""
        return len(self.classes)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """What the printed size says."""
        return NUMERIC

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """A linear model on words, and on what a frozen encoder makes of them."""
        return ("tfidf-local", "tfidf-pooled", "frozen-local", "frozen-pooled")

    def public_texts(self) -> list[str]:
        """Made-up titles."""
        return made_up_texts()

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; labels are one-hot.

        Raises:
            ConfigError: the merchant's mapping names a class or category that there is not.
            NoExamplesError: no product that a user took belongs to a class.
        """
        rows = self._rows(silo, STATEMENTS)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no product that a customer took between {self.first:%Y-%m-%d} and "
                f"{self.last:%Y-%m-%d} belongs to a class: {self._coverage(silo)}. Map own "
                f"categories in {own_settings(silo, self.name)}, or check first, split and last."
            )
        number = {name: k for k, name in enumerate(self.classes)}
        label_EK = np.zeros((len(rows), self.outputs), dtype=np.float32)
        label_EK[np.arange(len(rows)), [number[r["class"]] for r in rows]] = 1
        return self._examples(
            rows,
            label_EK.tolist(),
            numbered(r["user_id"] for r in rows),
            ("user_id", "item_id", "time"),
        )

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about every product of the merchant, mapped or not; see `AsksAt`.

        Nothing of any user is read, and a product is the same at every date. The key ``class``
        is what the merchant's own mapping says, empty where it says nothing.
        """
        del date, most
        asked = self.products(silo)
        return replace(asked, test_E=np.ones(len(asked), dtype=np.bool_))

    def products(self, silo: SiloFolder) -> Examples:
        """Return every product of the merchant; see `silotune.tasks.base.ListsProducts`."""
        rows = self.catalogue(silo)
        labels = [[math.nan] * self.outputs] * len(rows)
        return self._examples(
            rows,
            labels,
            np.zeros(len(rows), dtype=np.int64),
            ("item_id", "title", "category", "class"),
        )

    def catalogue(self, silo: SiloFolder) -> list[dict[str, Any]]:
        """Return every product of the merchant: ``title``, ``class`` or None, ``name``, ``test``.

        Local to the silo. ``test`` says whether its name is held out.

        Raises:
            ConfigError: as `build`.
        """
        return self._rows(silo, CATALOGUE)

    def _coverage(self, silo: SiloFolder) -> str:
        rows = self.catalogue(silo)
        mapped = sum(r["class"] is not None for r in rows)
        return f"{mapped:,} of {len(rows):,} products are mapped"

    def _held(self, silo: SiloFolder) -> Sequence[str]:
        """Return the classes that a merchant without a mapping takes part in."""
        if self.classes_held is None:
            return self.classes
        drawn = sorted(self.classes, key=lambda c: _digest(f"{silo.info.name}:{c}"))
        return drawn[: self.classes_held]

    def _rows(self, silo: SiloFolder, statements: Sequence[str]) -> list[dict[str, Any]]:
        mapped = category_paths(silo, self.name, self.classes, self.category_level)
        if not own_settings(silo, self.name).exists():
            held = set(self._held(silo))
            mapped = {own: public for own, public in mapped.items() if public in held}
        return rows_of(
            silo,
            statements,
            {
                "own": list(mapped),
                "public": list(mapped.values()),
                "first": self.first,
                "split": self.split,
                "last": self.last,
                "kinds": _KINDS[self.event],
                "named": self.named,
                "threshold": f"{round(self.held_out * 16**_DIGITS):0{_DIGITS}x}",
                "train_products": self.train_products,
                "test_products": self.test_products,
                "seed": self.seed,
            },
        )

    def _examples(
        self,
        rows: list[dict[str, Any]],
        labels: list[list[float]],
        user_E: NDArray[np.int64],
        keys: tuple[str, ...],
    ) -> Examples:
        return Examples(
            text=[text_of(r) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array([numeric_of(r) for r in rows], dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=user_E,
            visit_E=np.arange(len(rows), dtype=np.int64),
            group=[r["name"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=self.objective,
            keys=keys_of(rows, *keys),
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
