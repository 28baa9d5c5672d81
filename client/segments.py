"""Segments that nobody named before: clusters of a merchant's customers, found in its silo.

For the merchant's own eyes, as scores are: fitted on raw behaviour without noise. Nothing of it
passes the egress gate. What may leave is made elsewhere, with noise (`client.centroids`).

Shape suffixes: U customers, P axes, K clusters.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2

from client.customer_space import public_space
from client.prepared import prepare
from client.score import end_of
from client.segment_profiles import LEAST_USERS, Profile, check_least_users, profiles_of
from silotune.config import config
from silotune.errors import ConfigError
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import DescribesCustomers, Task

__all__ = ["SegmentSettings", "Segments", "clustered", "find_segments", "merged", "segment_table"]

_Floats = NDArray[np.float64]
_Labels = NDArray[np.int64]


@config
class SegmentSettings:
    """How a merchant's customers are put into segments."""

    clusters: int = 8
    """Segments to look for; fewer come out where some would be too small."""
    least_users: int = LEAST_USERS
    """Customers of a segment, and behind everything that a profile says, at least."""
    axes: int = 16
    """Coordinates of a customer; see `client.customer_space`."""
    starts: int = 10
    """Searches, of which the best is kept."""
    seed: int = 0
    """Where the searches begin."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 1 <= self.clusters <= 1000:
            raise ConfigError(f"clusters is {self.clusters}; it must be from 1 to 1000.")
        check_least_users(self.least_users)
        for name in ("axes", "starts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segments:
    """A merchant's customers in segments. Private, as the tables are."""

    user_id: list[str]
    segment_U: _Labels
    """From 1; 1 is the largest."""
    profiles: list[Profile]
    """Of each segment in order."""
    date: dt.datetime


def find_segments(
    settings: SegmentSettings,
    task: Task,
    model: TextModel,
    silo: SiloFolder,
    *,
    as_of: dt.datetime | None = None,
) -> Segments:
    """Put every customer whom ``task`` asks about on a date into a segment, and describe each.

    Args:
        settings: how many, and how small at least.
        task: of customers; says who is asked about and what they are like.
        model: of the task, with its adapter.
        silo: whose tables are read.
        as_of: moment after which nothing is known, UTC; None: the end of the tables.

    Raises:
        ConfigError: the task is not one of customers.
        DataError: there is nobody to ask about.
    """
    if not isinstance(task, DescribesCustomers):
        raise ConfigError(
            f"task '{task.name}' is not about customers as they are on a date; take "
            "customer-segment or customer-churn."
        )
    date = as_of or end_of(silo)
    examples = task.build_at(silo, date)
    data = prepare(examples, model, silo.path / "cache", passes=1.0)
    point_UP = public_space(model, task, settings.axes).coordinates(model, data)
    label_U = merged(
        point_UP,
        clustered(point_UP, settings.clusters, starts=settings.starts, seed=settings.seed),
        settings.least_users,
    )
    traits = task.traits_at(silo, date)
    if traits.user_id != list(examples.keys["user_id"]):
        raise AssertionError  # both read the same tables as of the same date
    return Segments(
        user_id=traits.user_id,
        segment_U=label_U,
        profiles=profiles_of(traits, label_U, settings.least_users),
        date=date,
    )


def clustered(point_UP: _Floats, clusters: int, *, starts: int, seed: int) -> _Labels:
    """Return each point's cluster by k-means (Lloyd 1982), the best of ``starts`` searches.

    Each begins with k-means++ (Arthur and Vassilvitskii 2007). Where there are fewer different
    points than ``clusters``, each of them is a cluster.
    """
    different = len(np.unique(point_UP, axis=0))
    if clusters >= different:
        return np.unique(point_UP, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    best, label_U = np.inf, np.zeros(len(point_UP), np.int64)
    for start in range(starts):
        generator = np.random.default_rng([seed, start])
        try:
            centroid_KP, found_U = kmeans2(
                point_UP, clusters, iter=50, minit="++", missing="raise", seed=generator
            )
        except ClusterError:
            # A cluster ran empty on the way; another start may do better.
            continue
        loss = float(((point_UP - centroid_KP[found_U]) ** 2).sum())
        if loss < best:
            best, label_U = loss, found_U.astype(np.int64)
    return label_U


def merged(point_UP: _Floats, label_U: _Labels, least: int) -> _Labels:
    """Return segments of ``least`` points at least, from 1, the largest first.

    The smallest cluster joins the one whose mean is nearest, until all are large enough or one is
    left: that one may be smaller.
    """
    label_U = label_U.copy()
    while True:
        names_K, count_K = np.unique(label_U, return_counts=True)
        if len(names_K) == 1 or count_K.min() >= least:
            break
        mean_KP = np.stack([point_UP[label_U == name].mean(0) for name in names_K])
        small = int(count_K.argmin())
        away_K = np.linalg.norm(mean_KP - mean_KP[small], axis=1)
        away_K[small] = np.inf
        label_U[label_U == names_K[small]] = names_K[int(away_K.argmin())]
    order_K = names_K[np.argsort(-count_K, kind="stable")]
    place = {int(name): number for number, name in enumerate(order_K, 1)}
    return np.array([place[int(name)] for name in label_U], dtype=np.int64)


def segment_table(found: Segments) -> pa.Table:
    """Return ``user_id``, ``date`` and ``segment`` of every customer."""
    columns: dict[str, Any] = {
        "user_id": pa.array(found.user_id),
        "date": pa.array([found.date] * len(found.user_id), pa.timestamp("us")),
        "segment": pa.array(found.segment_U, pa.int32()),
    }
    return pa.table(columns)
