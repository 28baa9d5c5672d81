"""Attacks on what leaves a silo: who was in the data, and what did their data say.

The attacker is the aggregator: it knows the model it sent, the settings, and the release; for
membership also the target's own rows and how training goes with and without the target. Both
attacks run the silo's own `client.trainer.train_private`, with noise and without.

Shape suffixes: E examples, U users, H inputs of the head, N runs, D parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import trainer
from client.audit import AuditConfig, Sources
from client.audit_canaries import Subject, head_inputs
from client.prepared import PreparedExamples
from privacy.dp_sgd import DPConfig
from privacy.randomness import RandomSource
from silotune.errors import PrivacyError

__all__ = ["Inversion", "Membership", "invert_updates", "membership_inference", "noiseless"]

Progress = Callable[[int, int], None]

_NO_NOISE = 1e-9


def noiseless(settings: AuditConfig) -> AuditConfig:
    """Return the settings of the same training with practically no noise; the clip stays."""
    return replace(settings, privacy=replace(settings.privacy, noise_multiplier=_NO_NOISE))


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """Scores of a membership-inference attack, of the runs it did not learn from."""

    score: NDArray[np.float64]
    """Log-likelihood ratio: higher means that the target was in the data, (N,)."""
    member: NDArray[np.bool_]


def membership_inference(
    subject: Subject,
    settings: AuditConfig,
    *,
    targets: int,
    runs: int,
    sources: Sources,
    generator: np.random.Generator,
    progress: Progress | None = None,
) -> Membership:
    """Train ``runs`` times for each target, with or without it by chance 1/2, and tell which.

    The attacker knows every user's data and so their gradients at the start. Its statistic is
    the release along the target's gradient, made blind to what the others' sampling and the
    noise would add (Fisher's linear discriminant). From half of the runs it learns how that
    is distributed with and without the target (LiRA, Carlini et al. 2022, arXiv:2112.03570, on
    user level); the other half is attacked.

    Raises:
        PrivacyError: fewer than 8 runs or fewer users than targets.
    """
    rows_U = _rows_by_user(subject.data)
    if runs < 8 or not 1 <= targets <= len(rows_U):
        raise PrivacyError("membership inference needs 8 runs, 1 target and its examples.")
    grads_UD = _gradients(subject, settings, rows_U, sources)
    scores, members = [], []
    chosen = generator.choice(len(rows_U), targets, replace=False)
    for number, user in enumerate(chosen.tolist()):
        without = _hidden(subject.data, np.setdiff1d(_train(subject.data), rows_U[user]))
        member = generator.permutation(np.arange(runs) % 2 == 0)
        looked_D = _discriminant(grads_UD, user, settings)
        gain = np.empty(runs)
        for run in range(runs):
            data = subject.data if member[run] else without
            update_D = _train_from_zero(
                subject, data, settings, steps=settings.steps, source=sources()
            )
            gain[run] = float(update_D.double().numpy() @ looked_D)
            if progress is not None:
                progress(number * runs + run + 1, targets * runs)
        half = runs // 2
        ratio = _learned_ratio(gain[:half], member[:half])
        scores.append(ratio(gain[half:]))
        members.append(member[half:])
    return Membership(np.concatenate(scores), np.concatenate(members))


def _gradients(
    subject: Subject, settings: AuditConfig, rows_U: list[NDArray[np.int64]], sources: Sources
) -> NDArray[np.float64]:
    """Return every user's clipped step at the public start, (U, D): what the attacker computes."""
    alone = replace(subject, nominal_users=1)
    quiet = noiseless(settings)
    privacy = replace(quiet.privacy, sampling_rate=1.0)
    steps = [
        _train_from_zero(
            alone, _hidden(subject.data, rows), quiet, steps=1, source=sources(), privacy=privacy
        )
        for rows in rows_U
    ]
    return torch.stack(steps).double().numpy()


def _discriminant(
    grads_UD: NDArray[np.float64], user: int, settings: AuditConfig
) -> NDArray[np.float64]:
    others_UD = np.delete(grads_UD, user, axis=0)
    q = settings.privacy.sampling_rate
    length = settings.learning_rate * settings.privacy.clip_norm
    # The ridge keeps the inverse finite where no one moves and no noise falls.
    ridge = length**2 * (settings.privacy.noise_multiplier**2 + 1e-6)
    spread_DD = q * (1 - q) * others_UD.T @ others_UD + ridge * np.eye(grads_UD.shape[1])
    looked_D: NDArray[np.float64] = np.linalg.solve(spread_DD, grads_UD[user])
    return looked_D


def _learned_ratio(
    gain: NDArray[np.float64], member: NDArray[np.bool_]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    inside, outside = gain[member], gain[~member]
    # One width for both: with few runs, two fitted ones would favour whoever is far out.
    pooled = np.concatenate([inside - inside.mean(), outside - outside.mean()])
    spread = max(float(pooled.std()), 1e-12)
    middle, shift = (inside.mean() + outside.mean()) / 2, inside.mean() - outside.mean()
    return lambda seen: (seen - middle) * shift / spread**2


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """What gradient inversion recovered from updates of silos with a single example each."""

    similarity: NDArray[np.float64]
    """Cosine of the recovered and the true head input (text vector and features), (U,)."""
    text: NDArray[np.float64]
    """The same of the text vector alone; empty for a model without text."""
    numeric: NDArray[np.float64]
    """The same of the numeric features alone."""
    identified: float
    """Share of users whose input was found among all users' by the nearest angle."""
    chance: float
    """What guessing at random would identify."""


def invert_updates(
    subject: Subject,
    settings: AuditConfig,
    *,
    users: int,
    sources: Sources,
    generator: np.random.Generator,
    progress: Progress | None = None,
) -> Inversion:
    """Recover the head's input of a silo with one user and one example from one step's update.

    For a linear layer the gradient of the weights is the gradient of the bias times the input:
    their quotient is the input (Phong et al. 2018, section 3; Geiping et al. 2020,
    arXiv:2003.14053, proposition 3.1). The clip scales both alike and hides nothing.

    Raises:
        PrivacyError: the silo has fewer than 2 users.
    """
    rows_U = _rows_by_user(subject.data)
    count = min(users, len(rows_U))
    if count < 2:
        raise PrivacyError("gradient inversion needs 2 users, to tell one from the other.")
    one_user = replace(subject, nominal_users=1)
    privacy = replace(settings.privacy, sampling_rate=1.0)
    true, found = [], []
    for number, user in enumerate(generator.choice(len(rows_U), count, replace=False).tolist()):
        row = generator.choice(rows_U[user], 1)
        alone = _hidden(subject.data, row)
        update_D = _train_from_zero(
            one_user, alone, settings, steps=1, source=sources(), privacy=privacy
        )
        parts = subject.model.layout.split(update_D)
        weight_H, bias = parts["head.score.weight"][0], parts["head.score.bias"][0]
        found.append((weight_H / bias).double().numpy())
        true.append(head_inputs(subject, row)[0].double().numpy())
        if progress is not None:
            progress(number + 1, count)
    # The columns kept for canaries are no part of anyone's data.
    width = len(true[0]) - subject.room
    text = width - (subject.data.examples.numeric_EF.shape[1] - subject.room)
    true_UH, found_UH = np.stack(true)[:, :width], np.stack(found)[:, :width]
    nearest = (_unit(found_UH) @ _unit(true_UH).T).argmax(axis=1)
    # Two users with the same input are the same to any attacker.
    hit = [np.allclose(true_UH[n], true_UH[i]) for i, n in enumerate(nearest.tolist())]
    return Inversion(
        similarity=_cosines(true_UH, found_UH),
        text=_cosines(true_UH[:, :text], found_UH[:, :text]) if text else np.empty(0),
        numeric=_cosines(true_UH[:, text:], found_UH[:, text:]),
        identified=float(np.mean(hit)),
        chance=float(np.mean([[np.allclose(a, b) for b in true_UH] for a in true_UH])),
    )


def _train_from_zero(
    subject: Subject,
    data: PreparedExamples,
    settings: AuditConfig,
    *,
    steps: int,
    source: RandomSource,
    privacy: DPConfig | None = None,
) -> Tensor:
    """Train from a public start and return the release, (D,)."""
    start_D = torch.zeros(subject.model.layout.size)
    subject.model.load_adapter(start_D)
    trainer.train_private(
        subject.model,
        data,
        privacy or settings.privacy,
        steps=steps,
        learning_rate=settings.learning_rate,
        nominal_users=subject.nominal_users,
        source=source,
    )
    return subject.model.adapter() - start_D


def _train(data: PreparedExamples) -> NDArray[np.int64]:
    return data.examples.rows(test=False)


def _rows_by_user(data: PreparedExamples) -> list[NDArray[np.int64]]:
    rows = _train(data)
    owner = data.examples.user_E[rows]
    return [rows[owner == u] for u in np.unique(owner)]


def _hidden(data: PreparedExamples, kept: NDArray[np.int64]) -> PreparedExamples:
    """Return ``data`` with training rows ``kept`` alone; rows behind the split train no one."""
    test_E = np.ones(len(data.examples), np.bool_)
    test_E[kept] = False
    return replace(data, examples=replace(data.examples, test_E=test_E))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norm: NDArray[np.float64] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), 1e-30
    )
    return norm


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    cosine: NDArray[np.float64] = (_unit(a) * _unit(b)).sum(axis=1)
    return cosine
