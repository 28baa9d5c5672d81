"""Canary users: rows of data whose gradients the adversary chose, and a small silo to try them in.

Shape suffixes: E examples, F numeric features, M canaries, R numeric columns kept for canaries,
H inputs of the head.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.prepared import PreparedExamples
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.base import Examples

__all__ = [
    "Subject",
    "bystanders",
    "directions",
    "frozen_head",
    "head_inputs",
    "insert_canaries",
    "widen",
]

_LENGTH = 1e6
"""Feature value of a canary: its gradient is long in its own direction, short in all others."""
_NEUTRAL = 0.1
"""Numeric feature that the head centres to zero: no gradient for who does not use the column."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Model and data under audit; the model's last ``room`` numeric columns are the canaries'."""

    model: TextModel
    data: PreparedExamples
    nominal_users: int
    room: int


def widen(data: PreparedExamples, room: int) -> PreparedExamples:
    """Give ``data`` ``room`` more numeric columns, in which no real user has a gradient."""
    old_EF = data.examples.numeric_EF
    extra_EF = np.full((len(old_EF), room), _NEUTRAL, dtype=np.float32)
    numeric_EF = np.concatenate([old_EF, extra_EF], axis=1)
    return replace(data, examples=replace(data.examples, numeric_EF=numeric_EF))


def insert_canaries(
    data: PreparedExamples, directions_MR: NDArray[np.float64], examples: int
) -> PreparedExamples:
    """Return ``data`` with one more user for each row of ``directions_MR``.

    The user's gradient is a multiple, far above any clip norm, of its direction in the head's
    weights of the last R numeric columns. Its label is -1, so that the gradient never fades,
    whatever the model has learnt: the guarantee is for every record, also an absurd one.

    Args:
        data: with R columns of room, from `widen`.
        directions_MR: unit vectors.
        examples: rows of each canary.
    """
    known = data.examples
    count, room = directions_MR.shape
    rows = count * examples
    numeric_EF = np.full((rows, known.numeric_EF.shape[1]), _NEUTRAL, dtype=np.float32)
    numeric_EF[:, -room:] += np.repeat(_LENGTH * directions_MR, examples, axis=0)
    first = int(known.user_E.max(initial=-1)) + 1
    user_E = first + np.repeat(np.arange(count), examples)
    whole = Examples(
        text=[*known.text, *[""] * rows],
        context=[*known.context, *[""] * rows] if known.context else [],
        numeric_EF=np.concatenate([known.numeric_EF, numeric_EF]),
        label_EK=np.concatenate(
            [known.label_EK, np.full((rows, known.label_EK.shape[1]), -1, np.float32)]
        ),
        user_E=np.concatenate([known.user_E, user_E]),
        visit_E=np.concatenate([known.visit_E, known.visit_E.max(initial=-1) + 1 + user_E]),
        group=[*known.group, *[""] * rows],
        test_E=np.concatenate([known.test_E, np.zeros(rows, np.bool_)]),
    )
    # Their text is one token, that which every text begins with.
    one, start = np.ones(rows, np.int64), np.zeros(rows, np.int64)
    return replace(
        data,
        examples=whole,
        start_E=np.concatenate([data.start_E, start]),
        length_E=np.concatenate([data.length_E, one]),
        pooled_E=np.concatenate([data.pooled_E, one]),
    )


def directions(count: int, room: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return random orthogonal unit vectors, (count, room)."""
    q_RM, r_MM = np.linalg.qr(generator.standard_normal((room, count)))
    turned: NDArray[np.float64] = (q_RM * np.sign(np.diag(r_MM))).T
    return turned


def bystanders(generator: np.random.Generator) -> Subject:
    """Return ten made-up users with a model without text."""
    users, features, room = 10, 4, 8
    rows = np.arange(users)
    examples = Examples(
        text=[""] * users,
        context=[],
        numeric_EF=generator.random((users, features)).astype(np.float32),
        label_EK=(generator.random((users, 1)) < 0.5).astype(np.float32),
        user_E=rows,
        visit_E=rows,
        group=[""] * users,
        test_E=np.zeros(users, np.bool_),
    )
    one = np.ones(users, np.int64)
    data = widen(PreparedExamples(examples, None, 0 * one, one, one, None), room)
    model = TextModel(ModelConfig(use_text=False), numeric_size=features + room, outputs=1)
    return Subject(model, data, users, room)


@torch.no_grad()
def head_inputs(subject: Subject, rows: NDArray[np.int64]) -> Tensor:
    """Return what the head's linear layer reads for ``rows`` at the public start, (E, H)."""
    model = subject.model
    seen: list[Tensor] = []
    handle = model.head.score.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().float().cpu())
    )
    device = next(model.parameters()).device
    try:
        model.load_adapter(torch.zeros(model.layout.size))
        for start in range(0, len(rows), 64):
            subject.data.batch(rows[start : start + 64], device).logits(model)
    finally:
        handle.remove()
    return torch.cat(seen)


def frozen_head(subject: Subject) -> Subject:
    """Return the same users with the head alone to train: the text's vectors become features.

    One run costs milliseconds, so that an attack which needs hundreds can be tried. What the
    head's weights would tell is told alike; the LoRA factors are left out, and so is the room.
    """
    count = len(subject.data.examples)
    read_EH = head_inputs(subject, np.arange(count))[:, : -subject.room or None]
    numeric_EF = (_NEUTRAL + read_EH / subject.model.head.numeric_scale).numpy()
    model = TextModel(
        ModelConfig(use_text=False, numeric_scale=subject.model.head.numeric_scale),
        numeric_size=numeric_EF.shape[1],
        outputs=subject.model.head.score.out_features,
    )
    one = np.ones(count, np.int64)
    examples = replace(subject.data.examples, numeric_EF=numeric_EF)
    data = PreparedExamples(examples, None, 0 * one, one, one, None)
    return Subject(model, data, subject.nominal_users, 0)
