"""The silo: everything of one merchant behind one object. What it returns may leave."""

from pathlib import Path

import torch
from torch import Tensor

from client.prepared import PreparedExamples
from client.trainer import PlainConfig, train_plain, train_private
from privacy.accounting import GaussianEvent
from privacy.dp_sgd import DPConfig
from privacy.ledger import Ledger
from privacy.randomness import RandomSource
from silotune.config import config, from_mapping
from silotune.errors import ConfigError, MessageError, PrivacyError
from silotune.messages import TrainRequest
from silotune.models.text_model import TextModel

__all__ = ["Budget", "Silo"]


@config
class Budget:
    """What the merchant allows one job to cost each of its users."""

    epsilon: float | None
    """None: no private training is allowed."""
    delta: float
    """Must be below one over the number of users."""
    allow_plain: bool = False
    """Training without privacy. Only for simulations on data that is not personal."""


@config
class _PrivateRequest:
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    examples_per_user: int
    steps: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be > 0.")


@config
class _PlainRequest:
    learning_rate: float
    optimizer: str
    batch_size: int
    epochs: float


class Silo:
    """One merchant's examples, budget and ledger; answers training requests.

    Args:
        name: of the merchant.
        data: its prepared examples; they stay inside.
        nominal_users: declared, public.
        ledger: file of the durable account.
        budget: what its policy allows.
        source: of sampling and noise.
    """

    def __init__(
        self,
        name: str,
        data: PreparedExamples,
        *,
        nominal_users: int,
        ledger: Path,
        budget: Budget,
        source: RandomSource,
    ) -> None:
        self.name = name
        self._data = data
        self._nominal_users = nominal_users
        self._budget = budget
        self._source = source
        self.ledger = Ledger(ledger)

    def train(self, what: TrainRequest, adapter_D: Tensor, model: TextModel) -> Tensor:
        """Train from ``adapter_D`` as asked and return the update, (D,) float32.

        A private update is (ε, δ)-DP per user as charged; the charge is durable before the
        first gradient.

        Raises:
            MessageError: the adapter or the base is not the agreed one.
            PrivacyError: the request is outside the budget. Nothing was trained or charged.
            ConfigError: a parameter is out of range.
        """
        if what.base_digest != model.base_digest or what.layout_digest != model.layout.digest:
            raise MessageError("the request is for another base model or adapter layout.")
        if adapter_D.shape != (model.layout.size,):
            raise MessageError("the adapter's length is not the layout's.")
        model.load_adapter(adapter_D)
        if what.private is not None:
            self._train_private(what, model)
        else:
            self._train_plain(what, model)
        update_D = model.adapter() - adapter_D
        if not torch.isfinite(update_D).all():
            # Diverged. All-zero tells nothing that the noised steps did not tell.
            update_D = torch.zeros_like(update_D)
        return update_D

    def _train_private(self, what: TrainRequest, model: TextModel) -> None:
        ask = from_mapping(_PrivateRequest, what.private or {}, where="request.private")
        settings = DPConfig(
            clip_norm=ask.clip_norm,
            noise_multiplier=ask.noise_multiplier,
            sampling_rate=ask.sampling_rate,
            examples_per_user=ask.examples_per_user,
        )
        if self._budget.epsilon is None:
            raise PrivacyError("the policy allows no private training for this job.")
        if self._budget.delta >= 1 / self._nominal_users:
            raise PrivacyError(
                f"delta is {self._budget.delta:g}; it must be below 1/users = "
                f"{1 / self._nominal_users:g}."
            )
        event = GaussianEvent(
            sampling_rate=settings.sampling_rate,
            noise_multiplier=settings.noise_multiplier,
            steps=ask.steps,
        )
        self.ledger.charge(
            event,
            job=what.job,
            round_=what.round,
            epsilon=self._budget.epsilon,
            delta=self._budget.delta,
        )
        train_private(
            model,
            self._data,
            settings,
            steps=ask.steps,
            learning_rate=ask.learning_rate,
            nominal_users=self._nominal_users,
            source=self._source,
        )

    def _train_plain(self, what: TrainRequest, model: TextModel) -> None:
        if not self._budget.allow_plain:
            raise PrivacyError("the policy allows no training without privacy.")
        ask = from_mapping(_PlainRequest, what.plain or {}, where="request.plain")
        settings = from_mapping(
            PlainConfig,
            {
                "learning_rate": ask.learning_rate,
                "optimizer": ask.optimizer,
                "batch_size": ask.batch_size,
            },
            where="request.plain",
        )
        train_plain(model, self._data, settings, epochs=ask.epochs, seed=what.round)
