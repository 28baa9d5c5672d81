"""Products that are alike, and products for a query, by what the adapted encoder makes of words.

Everything stays with the merchant, as scores do: nothing is released, nothing is charged.

Shape suffixes: I products, Q queries, N nearest, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.prepared import prepare
from client.score_settings import ScoreSettings
from silotune.errors import ConfigError, DataError
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, ListsProducts

__all__ = [
    "Judged",
    "Shelf",
    "found_table",
    "judge",
    "query_vectors",
    "refuse_other_names",
    "shelf_of",
]

_STEP = " > "


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """Every product of a merchant, and where an encoder puts it."""

    products: Examples
    vector_IH: NDArray[np.float32]
    """Of unit length: their products are cosines."""

    def position(self, item_id: str) -> int:
        """Return the index of a product. Raises DataError when there is none."""
        ids = list(self.products.keys["item_id"])
        if item_id not in ids:
            raise DataError(f"item '{item_id}' is not in items.parquet.")
        return ids.index(item_id)

    def nearest(
        self, vector_QH: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the products nearest to each vector, nearest first, and their cosines; (Q, N).

        N is ``count``, or the number of products where that is less. Of equally near products,
        those that stand first in the tables.
        """
        cosine_QI = vector_QH @ self.vector_IH.T
        nearest_QN = np.argsort(-cosine_QI, axis=1, kind="stable")[:, :count]
        return nearest_QN, np.take_along_axis(cosine_QI, nearest_QN, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How many of the nearest products of a held-out one are of its category."""

    level: int
    """Of the category path; 1 is the widest."""
    frozen: float
    """Share before adaptation."""
    adapted: float
    """Share with the adapter."""
    error: float
    """Standard error of the difference, over held-out names."""
    chance: float
    """Share of products drawn at random."""
    names: int
    """Held-out names that were looked up."""


def shelf_of(settings: ScoreSettings, silo: SiloFolder, model: TextModel) -> Shelf:
    """Put every product of ``silo`` where ``model`` sees it.

    Raises:
        ConfigError: the task's examples are no products, or the model reads no text.
        DataError: the merchant has no products.
    """
    task = settings.task
    if not isinstance(task, ListsProducts):
        raise ConfigError(f"task '{task.name}' is not about products; name one that is.")
    products = task.products(silo)
    if not len(products):
        raise DataError(f"{silo.path / 'items.parquet'}: has no rows. Import the tables again.")
    prepared = prepare(products, model, silo.path / "cache", passes=1.0)
    return Shelf(products=products, vector_IH=prepared.vectors(model))


def query_vectors(model: TextModel, queries: Sequence[str], like: Examples) -> NDArray[np.float32]:
    """Return where ``model`` puts queries in a customer's words, (Q, H).

    Args:
        model: as for the shelf.
        queries: texts.
        like: any examples of the task.
    """
    count = len(queries)
    asked = replace(
        like,
        text=list(queries),
        context=[""] * count,
        numeric_EF=np.zeros((count, like.numeric_EF.shape[1]), np.float32),
        label_EK=np.zeros((count, like.label_EK.shape[1]), np.float32),
        user_E=np.zeros(count, np.int64),
        visit_E=np.zeros(count, np.int64),
        group=[""] * count,
        test_E=np.ones(count, np.bool_),
        keys={},
    )
    return prepare(asked, model, passes=1.0).vectors(model)


def found_table(
    shelf: Shelf,
    queries: Sequence[str],
    nearest_QN: NDArray[np.int64],
    cosine_QN: NDArray[np.float32],
) -> pa.Table:
    """Return one row for each query and product: query, rank from 1, the product, similarity."""
    keys, ranks = shelf.products.keys, nearest_QN.shape[1]
    rows = nearest_QN.ravel().tolist()
    return pa.table(
        {
            "query": [q for q in queries for _ in range(ranks)],
            "rank": pa.array(np.tile(np.arange(1, ranks + 1), len(queries)), pa.int32()),
            **{name: [keys[name][i] for i in rows] for name in ("item_id", "title", "category")},
            "similarity": pa.array(cosine_QN.ravel(), pa.float32()),
        }
    )


def refuse_other_names(settings: ScoreSettings) -> None:
    """Raise ConfigError where the adapter says that its run held out other names than the task.

    What the task calls held out may then have trained it.
    """
    trained = settings.about.get("task")
    seed = trained.get("seed") if isinstance(trained, dict) else None
    if seed is not None and seed != settings.task.seed:
        raise ConfigError(
            f"{settings.adapter}: its run held out other names (task.seed = {seed}, here "
            f"{settings.task.seed}). Give its run file with --run."
        )


def judge(before: Shelf, after: Shelf, *, level: int, count: int = 10) -> Judged:
    """Compare two encoders of one silo by the neighbours of products that nobody trained on.

    Of the ``count`` products nearest to a held-out name, among those of names that are not held
    out, how many are of its category? Every name stands once, so that sizes of one product are
    not each other's neighbours. Names whose category no other has are not looked up.

    Args:
        before: by the frozen encoder.
        after: by the adapted one.
        level: of the category path.
        count: nearest products.

    Raises:
        DataError: no held-out name, or none whose category others have.
    """
    products = after.products
    category = np.array([_STEP.join(c.split(_STEP)[:level]) for c in products.keys["category"]])
    first = np.unique(np.array(products.group), return_index=True)[1]
    asked, known = (first[products.test_E[first] == side] for side in (True, False))
    asked = asked[np.isin(category[asked], category[known])]
    if not len(asked):
        raise DataError("no held-out product has a category that other products have too.")
    same_QI = category[asked][:, None] == category[known]
    shares = [_shares(shelf, asked, known, same_QI, count) for shelf in (before, after)]
    gain_Q = shares[1] - shares[0]
    return Judged(
        level=level,
        frozen=float(shares[0].mean()),
        adapted=float(shares[1].mean()),
        error=float(gain_Q.std(ddof=min(1, len(gain_Q) - 1)) / np.sqrt(len(gain_Q))),
        chance=float(same_QI.mean()),
        names=len(asked),
    )


def _shares(
    shelf: Shelf,
    asked: NDArray[np.int64],
    known: NDArray[np.int64],
    same_QI: NDArray[np.bool_],
    count: int,
) -> NDArray[np.float64]:
    cosine_QI = shelf.vector_IH[asked] @ shelf.vector_IH[known].T
    nearest_QN = np.argsort(-cosine_QI, axis=1, kind="stable")[:, :count]
    shares_Q: NDArray[np.float64] = np.take_along_axis(same_QI, nearest_QN, 1).mean(1)
    return shares_Q
