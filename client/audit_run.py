"""One whole audit: a subject from a silo, canaries, attacks, and everything they found."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.attacks import (
    Inversion,
    Membership,
    invert_updates,
    membership_inference,
    noiseless,
)
from client.audit import (
    AuditConfig,
    Scores,
    Sources,
    fresh_source,
    one_run_scores,
    seeded_sources,
    trial_scores,
)
from client.audit_canaries import Subject, bystanders, frozen_head, widen
from client.prepared import load_or_prepare
from privacy.audit import (
    CanaryEstimate,
    OneRunBound,
    TrialBound,
    gaussian_canary_epsilon,
    one_run_epsilon,
    trial_epsilon,
)
from silotune.config import config
from silotune.errors import ConfigError, DataError
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Task
from silotune.tasks.objective import Binary, Classes, Objective
from silotune.tasks.several_objective import SeveralObjectives

__all__ = ["AuditReport", "Effort", "run_audit", "subject_of"]

Progress = Callable[[int, int], None]
Stage = Callable[[str], Progress]
"""Opens a stage of the work by name; what it returns is told (done, total)."""


@config
class Effort:
    """How much work the audit does. More finds more."""

    canaries: int = 2000
    """Canary users of the one run."""
    trials: int = 4000
    """Independent single steps."""
    targets: int = 4
    """Users whose membership is attacked."""
    runs: int = 200
    """Trainings for each of them, half of them to learn from."""
    inverted: int = 30
    """Silos of one user whose update is inverted."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        least = {"canaries": 16, "trials": 64, "targets": 1, "runs": 16, "inverted": 2}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least {low}.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AuditReport:
    """What was claimed and what was found. Holds no row of anyone's data."""

    settings: AuditConfig
    claim: float
    """ε of one release."""
    step_claim: float
    """ε of one step in which every user takes part."""
    trials: TrialBound
    one_run: OneRunBound
    """From all steps' outputs."""
    one_run_release: OneRunBound
    """From the release alone."""
    estimate: CanaryEstimate
    """From the release alone."""
    membership: Membership
    membership_noiseless: Membership
    inversion: Inversion
    inversion_noiseless: Inversion
    canary_scores: Scores
    trial_scores: Scores
    repeatable: bool
    """True: seeded noise was audited, as every noise of a seeded run not private."""

    @property
    def refuted(self) -> tuple[str, ...]:
        """Which bounds lie above their claim; empty if the claim stands so far."""
        pairs = {
            "single steps": (self.trials.epsilon, self.step_claim),
            "one run, all steps seen": (self.one_run.epsilon, self.claim),
            "one run, release seen": (self.one_run_release.epsilon, self.claim),
        }
        return tuple(name for name, (found, claim) in pairs.items() if found > claim)


def subject_of(silo: SiloFolder, task: Task, cfg: ModelConfig, *, canaries: int) -> Subject:
    """Prepare a silo's own examples and model, with room for ``canaries`` canary users.

    Raises:
        ConfigError: the task is not about a yes or no.
        DataError: fewer than 8 users before the split.
    """
    if not isinstance(task.objective, Binary):
        # A canary's label is one that no chance fits, and attacks read one logit's loss.
        raise ConfigError(
            f"task '{task.name}' predicts {_predicted(task.objective)}, and the audit's canary "
            "users are worst cases of a yes or no. Audit a yes-or-no task on the same silo, with "
            "the same noise, clip, rate and steps: sampling, clip and noise are one code for all."
        )
    model = TextModel(
        cfg,
        numeric_size=len(task.numeric_names) + canaries,
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
    data = widen(load_or_prepare(silo, task, model), canaries)
    if np.unique(data.examples.user_E[data.examples.rows(test=False)]).size < 8:
        raise DataError(f"{silo.path}: fewer than 8 users before the split; too few to audit.")
    return Subject(model, data, silo.info.nominal_users, canaries)


def _predicted(objective: Objective) -> str:
    if isinstance(objective, SeveralObjectives):
        return "several things at once"
    several = isinstance(objective, Classes)
    return f"one of {objective.outputs} classes" if several else "a number"


def run_audit(
    subject: Subject,
    settings: AuditConfig,
    effort: Effort,
    *,
    seed: int | None = None,
    stage: Stage | None = None,
) -> AuditReport:
    """Run every part of the audit.

    The three bounds hold each at the confidence of ``settings``, not all together.

    Args:
        subject: from `subject_of`.
        settings: what is claimed.
        effort: how much work.
        seed: repeats the audit, with seeded noise; None: the silo's cryptographic noise.
        stage: shows progress.
    """
    show = stage or (lambda _: lambda *_: None)
    generator = np.random.default_rng(None if seed is None else [seed, 0])
    sources: Sources = fresh_source if seed is None else seeded_sources(seed)
    delta, confidence = settings.delta, settings.confidence
    steps, release = one_run_scores(
        subject,
        settings,
        canaries=effort.canaries,
        sources=sources,
        generator=generator,
        progress=show("one run with canary users"),
    )
    trials = trial_scores(
        bystanders(generator),
        settings,
        trials=effort.trials,
        sources=sources,
        generator=generator,
        progress=show("single steps"),
    )
    head = frozen_head(subject)
    users = np.unique(head.data.examples.user_E[head.data.examples.rows(test=False)]).size

    def attacked(of: AuditConfig, name: str) -> tuple[Membership, Inversion]:
        members = membership_inference(
            head,
            of,
            targets=min(effort.targets, users),
            runs=effort.runs,
            sources=sources,
            # The same targets with and without noise.
            generator=np.random.default_rng(targets_seed),
            progress=show(f"membership inference, {name}"),
        )
        inverted = invert_updates(
            subject,
            of,
            users=effort.inverted,
            sources=sources,
            generator=np.random.default_rng(targets_seed),
            progress=show(f"gradient inversion, {name}"),
        )
        return members, inverted

    targets_seed = int(generator.integers(1 << 62))
    membership, inversion = attacked(settings, "as claimed")
    membership_noiseless, inversion_noiseless = attacked(noiseless(settings), "without noise")
    return AuditReport(
        settings=settings,
        claim=settings.claim,
        step_claim=settings.step_claim,
        trials=trial_epsilon(trials.score, trials.included, delta=delta, confidence=confidence),
        one_run=one_run_epsilon(steps.score, steps.included, delta=delta, confidence=confidence),
        one_run_release=one_run_epsilon(
            release.score, release.included, delta=delta, confidence=confidence
        ),
        estimate=gaussian_canary_epsilon(
            release.score, release.included, delta=delta, generator=generator
        ),
        membership=membership,
        membership_noiseless=membership_noiseless,
        inversion=inversion,
        inversion_noiseless=inversion_noiseless,
        canary_scores=release,
        trial_scores=trials,
        repeatable=seed is not None,
    )
