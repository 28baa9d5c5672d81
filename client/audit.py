"""Audit of the training that a silo runs: canary users go in, what leaves is looked at.

A canary user is a few rows of data, the worst that a user may have: their gradient points where
no one else's does and is far longer than the clip norm. They pass through the same sampling,
per-user gradients, clip, noise and divisor as everyone: `client.trainer.train_private`, unchanged.
The adversary is the aggregator of the threat model: it knows all other users and the settings,
chose the canaries, and sees the release. Neighbours: add or remove one user of the silo.

An audit releases nothing: canaries and scores stay in the silo, and nothing is charged.

Shape suffixes: M canaries, R numeric columns kept for them, T steps, N trials, D parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import trainer
from client.audit_canaries import Subject, bystanders, directions, insert_canaries
from client.prepared import PreparedExamples
from privacy import randomness
from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.audit import TrialBound, trial_epsilon
from privacy.dp_sgd import DPConfig
from privacy.randomness import RandomSource
from silotune.config import config
from silotune.errors import ConfigError

__all__ = [
    "AuditConfig",
    "QuickAudit",
    "Scores",
    "fresh_source",
    "one_run_scores",
    "quick_audit",
    "seeded_sources",
    "trial_scores",
]

Sources = Callable[[], RandomSource]
"""Makes the source of one run, as a silo makes one when it starts."""

Progress = Callable[[int, int], None]


@config
class AuditConfig:
    """What is claimed, and how hard it is tried to refute it."""

    privacy: DPConfig
    steps: int
    """Steps of one release."""
    learning_rate: float
    delta: float
    """δ of the claim, and of every bound."""
    confidence: float = 0.95
    """Chance, at least, that a bound holds."""
    examples_per_canary: int = 4
    """Above 1: a clip per example, where one per user is claimed, moves the sum by as much."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        for field in ("steps", "examples_per_canary"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be > 0.")
        for field in ("delta", "confidence"):
            if not 0 < getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be in (0, 1).")

    @property
    def claim(self) -> float:
        """ε of one release of ``steps`` steps, as the ledger would charge it."""
        return epsilon_spent(
            [self._event(self.privacy.sampling_rate, self.steps)], delta=self.delta
        )

    @property
    def step_claim(self) -> float:
        """ε of one step in which every user takes part: the noise alone protects."""
        return epsilon_spent([self._event(1.0, 1)], delta=self.delta)

    def _event(self, rate: float, steps: int) -> GaussianEvent:
        return GaussianEvent(
            sampling_rate=rate, noise_multiplier=self.privacy.noise_multiplier, steps=steps
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the adversary computed, one number per canary or trial, and the truth."""

    score: NDArray[np.float64]
    """In clip norms: about 0 for who took no part."""
    included: NDArray[np.bool_]


def fresh_source() -> RandomSource:
    """Return what a silo draws from. Looked up on every call: the code path of today."""
    return randomness.SecureSource()


def seeded_sources(seed: int) -> Sources:
    """Return sources that repeat a whole audit. Every run has another seed, unknown to it."""
    streams = np.random.default_rng([seed, 1])
    return lambda: randomness.SeededSource(tuple(streams.integers(1 << 32, size=4).tolist()))


def one_run_scores(
    subject: Subject,
    settings: AuditConfig,
    *,
    canaries: int,
    sources: Sources,
    generator: np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Scores, Scores]:
    """Train once with canaries, each in the data with chance 1/2; return two adversaries' scores.

    The first sees every step's output and uses the likelihood ratio of the claimed mechanism;
    the second sees the sum of the steps, which is what leaves the silo.

    Raises:
        ConfigError: more canaries than orthogonal directions.
    """
    if not 2 <= canaries <= subject.room:
        raise ConfigError(f"canaries is {canaries}; it must be from 2 to {subject.room}.")
    directions_MR = directions(canaries, subject.room, generator)
    included = generator.random(canaries) < 0.5
    data = insert_canaries(subject.data, directions_MR[included], settings.examples_per_canary)
    source = sources()
    subject.model.load_adapter(torch.zeros(subject.model.layout.size))
    seen_MT = np.empty((canaries, settings.steps))
    for step in range(settings.steps):
        update_D = _release(subject, data, settings, settings.privacy, source)
        seen_MT[:, step] = directions_MR @ _in_clips(subject, update_D, settings, settings.privacy)
        if progress is not None:
            progress(step + 1, settings.steps)
    ratio_M = _log_ratio(seen_MT, settings.privacy).sum(axis=1)
    return Scores(ratio_M, included), Scores(seen_MT.sum(axis=1), included)


def trial_scores(
    subject: Subject,
    settings: AuditConfig,
    *,
    trials: int,
    sources: Sources,
    generator: np.random.Generator,
    progress: Progress | None = None,
) -> Scores:
    """Run ``trials`` single steps, each afresh and with one canary in the data by chance 1/2.

    Every user takes part in the step, so that noise and clip alone protect: the strongest
    adversary. Every trial has a source of its own, as after a restart of the silo: noise that
    repeats then shows.
    """
    strict = replace(settings.privacy, sampling_rate=1.0)
    included = generator.random(trials) < 0.5
    score = np.empty(trials)
    # One direction for all trials: what noise repeats in it, the adversary learns.
    direction_MR = directions(1, subject.room, generator)
    start_D = torch.zeros(subject.model.layout.size)
    for trial in range(trials):
        chosen_MR = direction_MR[: int(included[trial])]
        data = insert_canaries(subject.data, chosen_MR, settings.examples_per_canary)
        subject.model.load_adapter(start_D)
        update_D = _release(subject, data, settings, strict, sources())
        score[trial] = float((direction_MR @ _in_clips(subject, update_D, settings, strict))[0])
        if progress is not None:
            progress(trial + 1, trials)
    return Scores(score, included)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickAudit:
    """Outcome of `quick_audit`."""

    lower_bound: float
    """ε at least, at the confidence."""
    claimed: float
    """ε at most, if the code keeps its promise."""
    bound: TrialBound

    @property
    def refuted(self) -> bool:
        """True: the code under audit does not keep its claim."""
        return self.lower_bound > self.claimed


def quick_audit(
    *,
    noise_multiplier: float = 1.0,
    clip_norm: float = 1.0,
    delta: float = 1e-5,
    trials: int = 1200,
    confidence: float = 0.999,
    sources: Sources = fresh_source,
    seed: int = 0,
) -> QuickAudit:
    """Audit today's code path of private training, in seconds and without any data.

    Independent single steps of `client.trainer.train_private` on a model without text, with ten
    bystanders and a canary by chance 1/2; bound by `privacy.audit.trial_epsilon`. Refutes, with
    near certainty: no noise, half the noise, no clip, a clip per example, noise that repeats
    after a restart. A sound code path is refuted with chance 1 - ``confidence`` at most. Replace
    any function of `privacy` or `client.trainer` first to see what the audit says of it.

    Args:
        noise_multiplier: claimed.
        clip_norm: claimed.
        delta: at which ε is compared.
        trials: independent runs.
        confidence: of the lower bound.
        sources: of sampling and noise.
        seed: of canaries and bystanders, not of the noise.
    """
    generator = np.random.default_rng([seed, 0])
    settings = AuditConfig(
        privacy=DPConfig(clip_norm=clip_norm, noise_multiplier=noise_multiplier, sampling_rate=1.0),
        steps=1,
        learning_rate=1.0,
        delta=delta,
        confidence=confidence,
    )
    seen = trial_scores(
        bystanders(generator), settings, trials=trials, sources=sources, generator=generator
    )
    bound = trial_epsilon(seen.score, seen.included, delta=delta, confidence=confidence)
    return QuickAudit(lower_bound=bound.epsilon, claimed=settings.step_claim, bound=bound)


def _release(
    subject: Subject,
    data: PreparedExamples,
    settings: AuditConfig,
    privacy: DPConfig,
    source: RandomSource,
) -> Tensor:
    """Run one step of the silo's own training and return what it changed, (D,)."""
    before_D = subject.model.adapter()
    trainer.train_private(
        subject.model,
        data,
        privacy,
        steps=1,
        learning_rate=settings.learning_rate,
        nominal_users=subject.nominal_users,
        source=source,
    )
    return subject.model.adapter() - before_D


def _in_clips(
    subject: Subject, update_D: Tensor, settings: AuditConfig, privacy: DPConfig
) -> NDArray[np.float64]:
    """Return the canaries' columns of one step's sum over users, in clip norms, (R,)."""
    weight_KF = subject.model.layout.split(update_D)["head.score.weight"]
    divisor = privacy.sampling_rate * subject.nominal_users
    scale = -divisor / (settings.learning_rate * privacy.clip_norm)
    columns: NDArray[np.float64] = weight_KF[0, -subject.room :].double().numpy()
    return scale * columns


def _log_ratio(seen_MT: NDArray[np.float64], privacy: DPConfig) -> NDArray[np.float64]:
    """Log-likelihood ratio of one step with and without the canary, as claimed."""
    q, sigma = privacy.sampling_rate, privacy.noise_multiplier
    shift_MT = (2 * seen_MT - 1) / (2 * sigma**2)
    if q == 1:
        return shift_MT
    ratio_MT: NDArray[np.float64] = np.logaddexp(np.log1p(-q), np.log(q) + shift_MT)
    return ratio_MT
