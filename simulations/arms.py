"""The arms of a comparison that need all silos in one place: only a simulation can run them.

Shape suffixes: E examples, D adapter.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.prepared import PreparedExamples
from client.trainer import PlainConfig, make_optimizer, train_plain
from silotune.models.text_model import TextModel

__all__ = ["Scores", "score_adapters", "train_each", "train_pooled"]

Scores = dict[str, NDArray[np.floating]]
"""Logits on each merchant's test rows, by merchant."""


def train_each(
    model: TextModel,
    data: Mapping[str, PreparedExamples],
    start_D: Tensor,
    settings: PlainConfig,
    *,
    epochs: float,
    seed: int,
    on_merchant: Callable[[str], None],
) -> dict[str, Tensor]:
    """Train from ``start_D`` at every merchant alone; return the adapters, (D,) each."""
    adapters = {}
    for index, (name, prepared) in enumerate(data.items()):
        on_merchant(name)
        model.load_adapter(start_D)
        train_plain(model, prepared, settings, epochs=epochs, seed=1000 * seed + index)
        adapters[name] = model.adapter()
    return adapters


def train_pooled(
    model: TextModel,
    data: Mapping[str, PreparedExamples],
    start_D: Tensor,
    settings: PlainConfig,
    *,
    epochs: float,
    seed: int,
    on_step: Callable[[int, int], None],
) -> Tensor:
    """Train on all merchants' examples together: the ceiling that nobody may have.

    A step takes one batch of one merchant, merchants drawn by their number of examples.
    """
    generator = np.random.default_rng(seed)
    rows = {name: p.examples.rows(test=False) for name, p in data.items()}
    names, sizes = list(rows), np.array([len(r) for r in rows.values()], dtype=float)
    steps = max(1, round(epochs * sizes.sum() / settings.batch_size))
    device = next(model.parameters()).device
    model.load_adapter(start_D)
    optimizer, schedule = make_optimizer(model, settings, steps)
    for step in range(steps):
        name = names[generator.choice(len(names), p=sizes / sizes.sum())]
        chosen = generator.choice(rows[name], min(settings.batch_size, len(rows[name])), False)
        batch = data[name].batch(chosen, device)
        loss = nn.functional.binary_cross_entropy_with_logits(batch.logits(model), batch.label_EK)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
    return model.adapter()


def score_adapters(
    model: TextModel,
    data: Mapping[str, PreparedExamples],
    adapters: Tensor | Mapping[str, Tensor],
) -> Scores:
    """Score every merchant's test rows with one adapter for all, or each with its own."""
    scores: Scores = {}
    for name, prepared in data.items():
        adapter_D = adapters if isinstance(adapters, Tensor) else adapters[name]
        model.load_adapter(adapter_D)
        scores[name] = prepared.scores(model, prepared.examples.rows(test=True))[:, 0]
    return scores
