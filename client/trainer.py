"""Training inside a silo: private (user-level DP-SGD) and, for data that stays, plain.

Shape suffixes: E examples, U users, D parameters.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.prepared import PreparedExamples
from client.self_check import check_once
from privacy.dp_sgd import DPConfig, noisy_mean
from privacy.gradient_check import check_moved
from privacy.gradients import UserGradients
from privacy.randomness import RandomSource
from privacy.sampling import cap_examples, poisson_users
from silotune.config import config
from silotune.errors import ConfigError
from silotune.models.batching import token_batches
from silotune.models.text_model import TextModel

__all__ = ["PlainConfig", "make_optimizer", "train_plain", "train_private"]

_TOKEN_BUDGET = 2048
"""Padded tokens of one forward and backward pass."""

_ROW_NUMBERS = 1 << 24
"""Numbers of per-user gradients held at once, U × D: 64 MiB in float32."""


@config
class PlainConfig:
    """Optimiser of training without privacy: local adapters, baselines."""

    learning_rate: float = 0.05
    """Of the optimiser, falling linearly to a twentieth within each call."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    batch_size: int = 16
    """Examples per step."""
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be > 0.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1.")


def train_plain(
    model: TextModel,
    data: PreparedExamples,
    settings: PlainConfig,
    *,
    epochs: float,
    seed: int,
) -> int:
    """Train the adapter on the training rows without privacy; return the steps taken.

    What comes out must not leave the silo unless its owner gave privacy up.

    Args:
        model: its adapter is the start and is changed in place.
        data: examples of one silo, or of several pooled.
        settings: optimiser.
        epochs: passes over the rows; a fraction stops within one.
        seed: order of the examples.
    """
    rows = data.examples.rows(test=False)
    steps = max(1, round(epochs * len(rows) / settings.batch_size))
    optimizer, schedule = make_optimizer(model, settings, steps)
    generator = np.random.default_rng(seed)
    device = next(model.parameters()).device
    batches = _endless(rows, settings.batch_size, generator)
    for _ in range(steps):
        batch = data.batch(next(batches), device)
        summed = data.examples.objective.loss(batch.logits(model), batch.label_EK)
        loss = summed / len(batch.label_EK)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return steps


def make_optimizer(
    model: TextModel, settings: PlainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimiser of the trainable parameters and its schedule over ``steps``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, decay = settings.learning_rate, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)


def _endless(
    rows: NDArray[np.int64], size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    order = generator.permutation(rows)
    while True:
        while len(order) < size:
            order = np.concatenate([order, generator.permutation(rows)])
        yield order[:size]
        order = order[size:]


def train_private(
    model: TextModel,
    data: PreparedExamples,
    settings: DPConfig,
    *,
    steps: int,
    learning_rate: float,
    nominal_users: int,
    source: RandomSource,
) -> None:
    """Train the adapter in place by ``steps`` of user-level DP-SGD.

    Each step releases one Gaussian mechanism on a Poisson sample of users; the caller
    accounts for ``steps`` of them. Everything after the noise is post-processing.

    Args:
        model: its adapter is the start, a public vector.
        data: the silo's examples.
        settings: clip, noise, rate.
        steps: how many.
        learning_rate: of plain SGD on the noised mean.
        nominal_users: declared and public; part of the divisor.
        source: of sampling and noise; cryptographic in a real run.

    Raises:
        PrivacyError: the self-test fails, or the adapter is where it was. Its words are fixed.
    """
    rows_U = _rows_by_user(data)
    start_D = adapter_D = model.adapter()
    gradients = UserGradients(model)
    try:
        check_once(model, gradients, data.examples.objective)
        for _ in range(steps):
            chosen = poisson_users(len(rows_U), settings.sampling_rate, source)
            sample = [cap_examples(rows_U[u], settings.examples_per_user, source) for u in chosen]
            step_D = noisy_mean(
                _user_gradients(model, gradients, data, sample),
                model.layout.size,
                settings,
                nominal_users,
                source,
            )
            adapter_D = adapter_D - learning_rate * step_D
            model.load_adapter(adapter_D)
    finally:
        # The worker keeps its model: a failed round must not leave it collecting.
        gradients.remove()
    check_moved(start_D, model.adapter(), [math.prod(s) for s in model.layout.shapes])


def _rows_by_user(data: PreparedExamples) -> list[NDArray[np.int64]]:
    rows = data.examples.rows(test=False)
    users = data.examples.user_E[rows]
    # One sort: looking for each user among all rows takes users times rows.
    by_user = np.argsort(users, kind="stable")
    ends = np.flatnonzero(np.diff(users[by_user])) + 1
    return np.split(rows[by_user], ends) if len(rows) else []


def _user_gradients(
    model: TextModel,
    gradients: UserGradients,
    data: PreparedExamples,
    sample: list[NDArray[np.int64]],
) -> Iterator[Tensor]:
    """Yield gradients (U, D) of groups of whole users; a user is never split over groups."""
    device = next(model.parameters()).device
    group = max(1, _ROW_NUMBERS // model.layout.size)
    for start in range(0, len(sample), group):
        part = sample[start : start + group]
        rows = np.concatenate(part)
        owner = np.empty(len(data.examples), dtype=np.int64)
        for index, own in enumerate(part):
            owner[own] = index
        # Rows of a user may lie in several batches: the sums meet before the clip.
        total_UD: Tensor | None = None
        for batch_rows in token_batches(rows, data.length_E, _TOKEN_BUDGET):
            batch = data.batch(batch_rows, device)
            user_E = torch.from_numpy(owner[batch_rows]).to(device)
            with gradients.collect(user_E, len(part), into=total_UD):
                loss = data.examples.objective.loss(batch.logits(model), batch.label_EK)
                torch.autograd.backward(loss)
            total_UD = gradients.take()
        if total_UD is not None:
            yield total_UD
