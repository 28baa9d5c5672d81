"""The silo: everything of one merchant behind one object. What it returns may leave."""

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from client import measure
from client.accepted import refuse_backwards
from client.parameters import PlainParameters, PrivateParameters
from client.prepared import PreparedExamples
from client.self_check import check_once
from client.trainer import train_plain, train_private
from privacy.accounting import GaussianEvent
from privacy.egress import Declaration, Gate, Outgoing
from privacy.gradients import UserGradients
from privacy.ledger import Ledger
from privacy.policy import Ask, Policy
from privacy.randomness import RandomSource
from silotune.config import from_mapping
from silotune.errors import MessageError
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import TextModel

__all__ = ["Silo"]


class Silo:
    """One merchant's examples, policy and ledger; answers requests to train and to measure.

    Args:
        name: of the merchant.
        data: its prepared examples; they stay inside.
        task: name of what they are examples of.
        nominal_users: declared, public.
        ledger: file of the durable account; or the account itself, where a merchant learns
            several tasks, each a silo of its own, that the same users pay for.
        policy: the merchant's own limits.
        source: of sampling and noise.
        server: identity of the aggregator that the transport has authenticated.
        anchor: file that remembers the ledger's newest entry; None: beside the ledger.

    Use it in ``with``: it holds the ledger, and no other process can.

    Raises:
        LedgerError: the ledger is held, changed, cut or set back.
    """

    def __init__(
        self,
        name: str,
        data: PreparedExamples,
        *,
        task: str,
        nominal_users: int,
        ledger: Path | Ledger,
        policy: Policy,
        source: RandomSource,
        server: str,
        anchor: Path | None = None,
    ) -> None:
        self.name = name
        self._data, self._task = data, task
        self._nominal_users = nominal_users
        self._policy = policy
        self._source = source
        self._server = server
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger, anchor=anchor)
        self._gate = Gate(self.ledger)

    def __enter__(self) -> "Silo":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the ledger go."""
        self.ledger.close()

    def train(self, what: TrainRequest, adapter_D: Tensor, model: TextModel) -> Outgoing:
        """Train from ``adapter_D`` as asked and return the update, (D,) float32.

        A private update is (ε, δ)-DP per user as charged; the charge is durable before the
        first gradient. The same request again gives the stored update, and trains nothing.

        Raises:
            MessageError: the adapter, the base or the task is not the agreed one.
            PolicyError: the request is outside the policy. Nothing was trained or charged.
            BudgetError: it would pass the budget. Nothing was trained or charged.
            ConfigError: a parameter is out of range.
            EgressError: the update is not what it must be; it stays, the charge too.
        """
        began = time.monotonic()
        _check_agreed(what, adapter_D, model)
        if what.private is not None:
            out = self._train_private(what, adapter_D, model)
        else:
            out = self._train_plain(what, adapter_D, model)
        self._hold(began)
        return out

    def measure(self, what: MetricsRequest, adapter_D: Tensor, model: TextModel) -> Outgoing:
        """Return noised sums over the test examples as asked, of ``adapter_D``, float32.

        The release is (ε, δ)-DP per user as charged; the charge is durable before the first
        example is scored. The same request again gives the stored release, and scores nothing.

        Raises:
            MessageError: the adapter, the base or the task is not the agreed one.
            PolicyError: the request is outside the policy. Nothing was scored or charged.
            BudgetError: it would pass the budget. Nothing was scored or charged.
            ConfigError: the plan is out of range, or not for this task.
            EgressError: the release is not what it must be; it stays, the charge too.
        """
        began = time.monotonic()
        _check_agreed(what, adapter_D, model)
        out = self._measure(what, adapter_D, model)
        self._hold(began)
        return out

    def handed_over(self, out: Outgoing) -> None:
        """Record that ``out`` went to the transport."""
        self._gate.handed_over(out)

    def _train_private(self, what: TrainRequest, adapter_D: Tensor, model: TextModel) -> Outgoing:
        ask = from_mapping(PrivateParameters, what.private or {}, where="request.private")
        settings = ask.settings()
        asked = Ask(
            server=self._server,
            task=what.task,
            base_digest=what.base_digest,
            private=True,
            seeded=not self._source.is_private,
            noise_multiplier=settings.noise_multiplier,
            clip_norm=settings.clip_norm,
            sampling_rate=settings.sampling_rate,
            steps=ask.steps,
            examples_per_user=settings.examples_per_user,
            mechanism=settings.mechanism,
        )
        self._check_allowed(asked)
        request = _digest(what, adapter_D, self._server)
        stored = self._gate.again(request)
        if stored is not None:
            return stored
        refuse_backwards(self.ledger.entries, self._about(what), request)
        # Before the charge: a model whose gradients cannot be trusted shall cost nothing.
        gradients = UserGradients(model)
        try:
            check_once(model, gradients, self._data.examples.objective)
        finally:
            gradients.remove()
        event = GaussianEvent(
            sampling_rate=settings.sampling_rate,
            noise_multiplier=settings.noise_multiplier,
            steps=ask.steps,
        )
        reservation = self.ledger.reserve(
            request,
            [event],
            self._about(what),
            epsilon=self._policy.epsilon,
            delta=self._policy.delta,
        )
        model.load_adapter(adapter_D)
        train_private(
            model,
            self._data,
            settings,
            steps=ask.steps,
            learning_rate=ask.learning_rate,
            nominal_users=self._nominal_users,
            source=self._source,
        )
        return self._gate.release(
            reservation,
            self._declare(model, settings.mechanism, what),
            _update(model, adapter_D),
            private=self._source.is_private,
            facts={
                "job": what.job,
                "round": what.round,
                "clip_norm": settings.clip_norm,
                "noise_multiplier": settings.noise_multiplier,
                "sampling_rate": settings.sampling_rate,
                "steps": ask.steps,
            },
        )

    def _train_plain(self, what: TrainRequest, adapter_D: Tensor, model: TextModel) -> Outgoing:
        self._check_allowed(
            Ask(server=self._server, task=what.task, base_digest=what.base_digest, private=False)
        )
        ask = from_mapping(PlainParameters, what.plain or {}, where="request.plain")
        model.load_adapter(adapter_D)
        train_plain(model, self._data, ask.settings(), epochs=ask.epochs, seed=what.round)
        return self._gate.release_unprotected(
            self._declare(model, "none", what),
            _update(model, adapter_D),
            facts={"job": what.job, "round": what.round},
        )

    def _measure(self, what: MetricsRequest, adapter_D: Tensor, model: TextModel) -> Outgoing:
        plan = measure.plan_of(what.metrics, model, self._data.examples.objective)
        asked = measure.ask_of(
            what,
            plan,
            server=self._server,
            seeded=not self._source.is_private,
            delta=self._policy.delta,
        )
        self._check_allowed(asked)
        request = _digest(what, adapter_D, self._server)
        stored = self._gate.again(request)
        if stored is not None:
            return stored
        refuse_backwards(self.ledger.entries, self._about(what), request)
        reservation = self.ledger.reserve(
            request,
            [plan.event],
            self._about(what),
            epsilon=self._policy.epsilon,
            delta=self._policy.delta,
        )
        model.load_adapter(adapter_D)
        return self._gate.release(
            reservation,
            Declaration(
                name="metrics",
                size=plan.size,
                mechanism=measure.MECHANISM,
                norm_max=measure.norm_limit(plan, self._nominal_users),
            ),
            measure.measured(model, self._data, plan, self._source),
            private=self._source.is_private,
            facts={"job": what.job, "round": what.round, **asdict(plan)},
        )

    def _check_allowed(self, asked: Ask) -> None:
        self._policy.check(asked, nominal_users=self._nominal_users)
        # The policy has said yes to the tasks that were named: no others are trained or scored.
        if asked.task != self._task:
            raise MessageError("the request is for another task than this silo's examples.")

    def _about(self, what: TrainRequest | MetricsRequest) -> dict[str, str | int]:
        # For people who read the ledger, and for the order of rounds.
        release = "metrics" if isinstance(what, MetricsRequest) else "update"
        return {
            "job": what.job,
            "round": what.round,
            "task": what.task,
            "server": self._server,
            "release": release,
        }

    def _declare(self, model: TextModel, mechanism: str, what: TrainRequest) -> Declaration:
        return Declaration(
            name="update",
            size=model.layout.size,
            mechanism=mechanism,
            norm_max=self._policy.update_norm_max,
            encoding=what.encoding,
        )

    def _hold(self, began: float) -> None:
        # How long training took depends on the sample; when the reply leaves shall not.
        interval = self._policy.reply_interval
        if interval > 0:
            took = time.monotonic() - began
            time.sleep(interval * math.ceil(took / interval) - took)


def _update(model: TextModel, adapter_D: Tensor) -> Tensor:
    update_D = model.adapter() - adapter_D
    if not torch.isfinite(update_D).all():
        # Diverged. All-zero tells nothing that the noised steps did not tell.
        update_D = torch.zeros_like(update_D)
    return update_D


def _check_agreed(what: TrainRequest | MetricsRequest, adapter_D: Tensor, model: TextModel) -> None:
    if what.base_digest != model.base_digest or what.layout_digest != model.layout.digest:
        raise MessageError("the request is for another base model or adapter layout.")
    if adapter_D.shape != (model.layout.size,) or not torch.isfinite(adapter_D).all():
        raise MessageError("the adapter is not a finite vector of the layout's length.")


def _digest(what: TrainRequest | MetricsRequest, adapter_D: Tensor, server: str) -> str:
    text = json.dumps([server, asdict(what)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(adapter_D.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
