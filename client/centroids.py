"""A merchant gives its aggregator centroids of its customers: a file, noised, charged, recorded.

The same account and the same gate as for every release: policy, reservation in the ledger before
a customer is looked at, gate and receipt, then the file. What a crash leaves is either nothing and
a cost that is spent, or a release that the same command writes again at no further cost.

What the noise does not cover is public before a customer is looked at: the adapter is one that
the aggregator sent (never the merchant's local one, which was trained without noise), the first
centroids and the axes come from made-up customers, and the date is the operator's, not the
tables' end, which a single purchase moves.

Shape suffixes: K clusters, P axes.
"""

import datetime as dt
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from client.config import ClientConfig, read_client
from client.customer_space import CustomerSpace, public_space
from client.prepared import prepare
from client.score import load_model
from client.score_file import about
from client.score_settings import ScoreSettings, kept_settings
from client.segments import clustered
from client.whole_file import write_file
from privacy.accounting import release_epsilon
from privacy.centroids import (
    MECHANISM,
    CentroidPlan,
    noised_centroids,
    read_centroids,
)
from privacy.egress import Declaration, Gate, Outgoing
from privacy.ledger import Ledger
from privacy.policy import Ask, Policy
from privacy.randomness import SecureSource, SeededSource
from silotune.config import from_toml
from silotune.errors import ConfigError, NoExamplesError
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import DescribesCustomers
from silotune.tasks.registry import task_mapping

__all__ = ["Released", "release_centroids"]

_Floats = NDArray[np.float64]

_STARTS = 20
"""Searches for the first centroids among the made-up customers. Public, as they are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Released:
    """What left, as whoever gets the file reads it."""

    centroid_KP: _Floats
    count_K: _Floats
    """Noised; may be below 0."""
    again: bool
    """Whether the release was made before, and cost nothing now."""
    epsilon: float
    """Of this release alone, at the policy's δ."""
    spent: float
    """ε of everything in the ledger, this release included, at the policy's δ."""


def release_centroids(
    folder: Path,
    plan: CentroidPlan,
    *,
    task: str,
    as_of: dt.datetime,
    out: Path,
    job: str | None = None,
) -> Released:
    """Write a file with noised centroids of the customers in the silo ``folder`` to ``out``.

    It is (ε, δ)-DP per user as charged to the silo's ledger; the charge is durable before the
    first customer is looked at. The same again (plan, date, adapter) gives the stored release.

    Args:
        folder: of a merchant that takes part: client.toml, policy.toml, tables.
        plan: what to release and with how much noise.
        task: one of customers; its adapter gives the embedding.
        as_of: date of the customers, UTC. Public.
        out: the file to write, safetensors, mode 0600.
        job: of which run the adapter shall be; None: the newest that was sent.

    Raises:
        ConfigError: a file of the silo is wrong, or the task is not one of customers.
        ModelError: no adapter of the task was sent.
        PolicyError: outside the policy. Nothing was charged or written.
        BudgetError: it would pass the budget. Nothing was charged or written.
        LedgerError: another process, as the daemon, holds the ledger, or it was changed.
        EgressError: the release is not what it must be; it stays, the charge too.
    """
    client, silo = read_client(folder), SiloFolder.open(folder)
    policy = from_toml(Policy, folder / "policy.toml")
    settings = kept_settings(folder, task, job=job)
    asks: Any = settings.task
    if not isinstance(asks, DescribesCustomers):
        raise ConfigError(
            f"task '{task}' is not about customers as they are on a date; take customer-segment or "
            "customer-churn."
        )
    model = load_model(settings)
    space = public_space(model, asks, plan.axes)
    initial_KP = _first_centroids(space, plan)
    facts = _facts(silo, settings, plan, as_of)
    anchor = Path(client.anchor) if client.anchor else None
    with Ledger(folder / "ledger.db", anchor=anchor, wait=5.0) as ledger:
        one = _Release(silo, settings, client, policy, model, plan, ledger)
        before = len(ledger.events())
        released = one.out(asks, space, initial_KP, as_of, facts)
        noisy_D = released.vector()
        centroid_KP, count_K = read_centroids(noisy_D, plan, initial_KP)
        tensors = {
            "released": noisy_D.numpy(),
            "centroids": centroid_KP,
            "counts": count_K,
            "initial": initial_KP,
            "centre": space.centre_X,
            "axes": space.axes_XP,
        }
        told = facts | {
            "private": released.receipt["private"],
            "sha256": released.receipt["sha256"],
        }
        content = save(tensors, {"silotune": json.dumps(told)})
        write_file(out, lambda file: _put(file, content))
        one.gate.handed_over(released)
        return Released(
            centroid_KP=centroid_KP,
            count_K=count_K,
            again=len(ledger.events()) == before,
            epsilon=release_epsilon(plan.event, policy.delta),
            spent=ledger.spent(policy.delta),
        )


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


class _Release:
    """One release of one silo, against its ledger."""

    def __init__(
        self,
        silo: SiloFolder,
        settings: ScoreSettings,
        client: ClientConfig,
        policy: Policy,
        model: TextModel,
        plan: CentroidPlan,
        ledger: Ledger,
    ) -> None:
        self._silo, self._settings, self._policy = silo, settings, policy
        self._model, self._plan, self._ledger = model, plan, ledger
        self._server = client.server.identity
        seed = client.noise_seed
        self._source = SecureSource() if seed is None else SeededSource(seed)
        self.gate = Gate(ledger)

    def out(
        self,
        task: DescribesCustomers,
        space: CustomerSpace,
        initial_KP: _Floats,
        as_of: dt.datetime,
        facts: dict[str, Any],
    ) -> Outgoing:
        """Return the release, made now or before. Errors: as `release_centroids`."""
        plan, policy = self._plan, self._policy
        users = self._silo.info.nominal_users
        policy.check(self._ask(), nominal_users=users)
        request = _digest(self._server, self._settings, facts)
        stored = self.gate.again(request)
        if stored is not None:
            return stored
        reservation = self._ledger.reserve(
            request,
            [plan.event],
            {
                "job": "centroids",
                "round": 0,
                "task": self._settings.task.name,
                "server": self._server,
                "release": "centroids",
            },
            epsilon=policy.epsilon,
            delta=policy.delta,
        )
        point_EP, user_E = self._points(task, space, as_of)
        return self.gate.release(
            reservation,
            Declaration(
                name="centroids",
                size=plan.size,
                mechanism=MECHANISM,
                norm_max=10 * (users + plan.noise_std * math.sqrt(plan.size)),
            ),
            noised_centroids(point_EP, user_E, initial_KP, plan, self._source),
            private=self._source.is_private,
            facts={"as_of": as_of.isoformat(), **asdict(plan)},
        )

    def _ask(self) -> Ask:
        return Ask(
            server=self._server,
            task=self._settings.task.name,
            base_digest=self._model.base_digest,
            private=True,
            seeded=not self._source.is_private,
            mechanism=MECHANISM,
            metrics=self._plan.names,
            metrics_epsilon=release_epsilon(self._plan.event, self._policy.delta),
        )

    def _points(
        self, task: DescribesCustomers, space: CustomerSpace, as_of: dt.datetime
    ) -> tuple[_Floats, NDArray[np.int64]]:
        try:
            examples = task.build_at(self._silo, as_of)
        except NoExamplesError:
            # A silo with one customer releases; so must one with none, or it would tell.
            return np.empty((0, self._plan.axes)), np.empty(0, np.int64)
        data = prepare(examples, self._model, self._silo.path / "cache", passes=1.0)
        return space.coordinates(self._model, data), examples.user_E


def _first_centroids(space: CustomerSpace, plan: CentroidPlan) -> _Floats:
    label_E = clustered(space.made_up_EP, plan.clusters, starts=_STARTS, seed=0)
    names = np.unique(label_E)
    if len(names) != plan.clusters:
        raise ConfigError(
            f"clusters is {plan.clusters}; the task's made-up customers give {len(names)} at most."
        )
    return np.stack([space.made_up_EP[label_E == name].mean(0) for name in names])


def _facts(
    silo: SiloFolder, settings: ScoreSettings, plan: CentroidPlan, as_of: dt.datetime
) -> dict[str, Any]:
    """Return what the file says of itself: all of it public."""
    known = about(settings, as_of)
    return {
        "version": known["version"],
        "silo": silo.info.name,
        "task": known["task"],
        "as_of": known["as_of"],
        "job": settings.about.get("job", ""),
        "adapter_sha256": known["adapter_sha256"],
        "mechanism": MECHANISM,
        **asdict(plan),
    }


def _digest(server: str, settings: ScoreSettings, facts: dict[str, Any]) -> str:
    asked = [server, task_mapping(settings.task), asdict(settings.model), facts]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
