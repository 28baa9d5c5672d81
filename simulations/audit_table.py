"""The findings of an audit as rows of a table: for the terminal and for the page."""

import math
from dataclasses import dataclass

import numpy as np

from client.attacks import Inversion, Membership
from client.audit_run import AuditReport
from privacy.audit_curves import auc_limit, rate_above, rate_below, roc, tpr_limit

__all__ = ["CAVEATS", "LOW_FPR", "Row", "interval", "limit_of", "rows_of"]

LOW_FPR = 0.01
"""False-positive rate at which membership attacks are compared."""

_EVIDENCE = (
    "An audit is evidence, not proof: it can refute a claim, never establish one. A bound far "
    "below the claim means that these attacks were weak or the claim is generous."
)
_LOCAL = "Nothing was released and nothing is charged: canary users, scores and plots stay here."
CAVEATS = (_EVIDENCE, _LOCAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    limit: str
    """What the claim allows; empty where it says nothing."""
    verdict: str
    """'below', 'above', or empty for what is no test."""


def limit_of(report: AuditReport) -> tuple[float, float]:
    """Return what the claim allows: the area under the ROC curve, the TPR at `LOW_FPR`."""
    delta = report.settings.delta
    tpr = float(tpr_limit(np.array([LOW_FPR]), report.claim, delta)[0])
    return auc_limit(report.claim, delta), tpr


def interval(attack: Membership, fpr: float, confidence: float) -> tuple[float, float, float]:
    """Return TPR at ``fpr``, its lower limit, and the upper limit of the FPR reached there.

    Both limits hold together at ``confidence`` for the threshold looked at (Clopper-Pearson).
    """
    curve = roc(attack.score, attack.member)
    place = np.flatnonzero(curve.fpr <= fpr)[-1]
    inside, outside = int(attack.member.sum()), int((~attack.member).sum())
    chance = (1 - confidence) / 2
    hits = np.array(round(curve.tpr[place] * inside))
    alarms = np.array(round(curve.fpr[place] * outside))
    low, high = rate_below(hits, inside, chance), rate_above(alarms, outside, chance)
    return float(curve.tpr[place]), float(low), float(high)


def rows_of(report: AuditReport) -> list[Row]:
    """Return the table's rows, the strongest evidence first."""
    trial, one, release = report.trials, report.one_run, report.one_run_release
    best, low_fpr = limit_of(report)
    rows = [
        _bound(
            f"one step: ε at least ({len(report.trial_scores.score):,} trials)",
            trial.epsilon,
            report.step_claim,
        ),
        Row(
            what="  noise multiplier at most",
            found=_number(trial.noise_multiplier),
            limit=_number(report.settings.privacy.noise_multiplier),
            verdict="",
        ),
        Row(
            what="  ε, whatever the noise",
            found=_number(trial.epsilon_any),
            limit="",
            verdict="",
        ),
        _bound(
            "release: ε at least (all steps seen)",
            one.epsilon,
            report.claim,
        ),
        _bound(
            "release: ε at least (sum seen)",
            release.epsilon,
            report.claim,
        ),
        Row(
            what=f"  most {len(report.canary_scores.score):,} canaries could show",
            found=_number(one.ceiling),
            limit="",
            verdict="",
        ),
        Row(
            what="release: ε estimated (no bound)",
            found=f"{_number(report.estimate.epsilon)} "
            f"({_number(report.estimate.low)} to {_number(report.estimate.high)})",
            limit=_number(report.claim),
            verdict="",
        ),
    ]
    for name, attack, guarded in (
        ("as claimed", report.membership, True),
        ("without noise", report.membership_noiseless, False),
    ):
        curve = roc(attack.score, attack.member)
        tpr, low, high = interval(attack, LOW_FPR, report.settings.confidence)
        allowed = float(tpr_limit(np.array([high]), report.claim, report.settings.delta)[0])
        rows += [
            Row(
                what=f"membership {name}: AUC",
                found=f"{curve.auc:.3f}",
                limit=f"{best:.3f}" if guarded else "",
                verdict="",
            ),
            Row(
                what=f"  TPR at {LOW_FPR:.0%} FPR",
                found=f"{tpr:.3f}",
                limit=f"{low_fpr:.3f}" if guarded else "",
                verdict=("below" if low <= allowed else "above") if guarded else "",
            ),
        ]
    for name, found in (
        ("as claimed", report.inversion),
        ("without noise", report.inversion_noiseless),
    ):
        rows += _inverted(name, found)
    return rows


def _bound(what: str, found: float, claim: float) -> Row:
    verdict = "above" if found > claim else "below"
    return Row(what=what, found=_number(found), limit=_number(claim), verdict=verdict)


def _inverted(name: str, found: Inversion) -> list[Row]:
    return [
        Row(
            what=f"inversion {name}: cosine",
            found=f"{found.similarity.mean():.3f}",
            limit="",
            verdict="",
        ),
        Row(
            what=f"  users identified (by chance {found.chance:.0%})",
            found=f"{found.identified:.0%}",
            limit="",
            verdict="",
        ),
    ]


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}"
