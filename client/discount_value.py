"""What another choice of discounts would have earned, judged from logged ones.

A log holds what was offered, what came of it, and how likely each depth was to be offered (the
propensity). The doubly robust estimate (Dudík et al. 2014, arXiv:1503.02834) takes what a model
predicts and corrects it by the logged rows at which the policy agrees with the log, weighted by
one over their propensity. It is right if the propensities or the predictions are.

What it cannot know: a reason to offer a depth that also moves the purchase and that the features
do not hold. Then it is biased, and no figure here shows that. With propensities that were drawn
(an experiment) nothing is hidden; with fitted ones the estimate is as good as the features.

Nothing here is released: it reads a merchant's log, on the merchant's machine.

Shape suffixes: R logged rows, D depths, F features, U users.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from silotune.config import config
from silotune.errors import ConfigError, DataError

__all__ = ["DiscountLog", "Estimate", "OverlapRules", "estimate_change", "fit_propensities"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DiscountLog:
    """Offers that were made, one a row. Predictions and propensities saw no outcome of theirs."""

    user_R: _Ints
    """Index of the customer. Rows of one customer are not independent."""
    shown_R: _Ints
    """Index into the grid of depths that was offered; 0 is no discount."""
    outcome_R: _Floats
    """What came of it: profit or discount given, in currency, or 1 for a purchase."""
    propensity_RD: _Floats
    """Chance of each depth to be offered in this row; rows add up to 1."""
    predicted_RD: _Floats
    """What a model, fitted on other users, expects of the outcome at each depth."""

    def __post_init__(self) -> None:
        """Check shapes and ranges. Raises DataError."""
        rows, shape = len(self.user_R), self.propensity_RD.shape
        if len(self.shown_R) != rows or len(self.outcome_R) != rows:
            raise DataError(
                f"user_R, shown_R and outcome_R have {rows}, {len(self.shown_R)} and "
                f"{len(self.outcome_R)} rows."
            )
        if len(shape) != 2 or shape[0] != rows or self.predicted_RD.shape != shape:
            raise DataError(
                f"propensity_RD is {shape} and predicted_RD {self.predicted_RD.shape} for {rows} "
                "rows; both need a column for each depth."
            )
        _check_choice(self.shown_R, shape, "shown_R")
        # `not` catches NaN.
        fair_R = (self.propensity_RD >= 0).all(axis=1)
        fair_R &= np.abs(self.propensity_RD.sum(axis=1) - 1) < 1e-6
        fair_R &= np.isfinite(self.outcome_R) & np.isfinite(self.predicted_RD).all(axis=1)
        if not fair_R.all():
            raise DataError(
                f"row {int(np.flatnonzero(~fair_R)[0])}: propensities must be at least 0 and add "
                "up to 1; outcome and predictions must be finite."
            )
        if (self.propensity_RD[np.arange(rows), self.shown_R] <= 0).any():
            raise DataError(
                "a depth was offered whose propensity is 0: the propensities are wrong."
            )


@config
class OverlapRules:
    """When a log says too little about a policy. Public; chosen before the log is looked at."""

    least_propensity: float = 0.02
    """Below it, a depth of the policy counts as one that the log hardly ever offers."""
    most_rows_below: float = 0.05
    """Share of rows below it, at most; beyond, the estimate is refused."""
    least_effective_rows: float = 100.0
    """Effective sample size, (Σw)²/Σw², at least; below, the estimate is refused."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 < self.least_propensity < 1:
            raise ConfigError(f"least_propensity is {self.least_propensity}; it must be in (0, 1).")
        if not 0 <= self.most_rows_below <= 1:
            raise ConfigError(f"most_rows_below is {self.most_rows_below}; it must be in [0, 1].")
        if not self.least_effective_rows >= 1:
            raise ConfigError(
                f"least_effective_rows is {self.least_effective_rows}; it must be at least 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Change of the outcome per logged row, and how sure of it one may be."""

    change: float
    """Of the policy beside the other one, per row."""
    standard_error: float
    """From the influence function, users as the independent unit."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    confidence: float
    predicted: float
    """The change that the model alone expects; far from ``change``, the model is off."""
    rows: int
    users: int
    effective_rows: float
    """The smaller of the two policies' effective sample sizes, over rows at which they differ."""
    rows_below: float
    """Share of rows at which either policy's depth was hardly ever offered."""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say the estimate and what stands against it, in words."""
        said = (
            f"{self.change:+.4g} per offer, {100 * self.confidence:g}% interval {self.low:+.4g} to "
            f"{self.high:+.4g} ({self.users} users, {self.rows} offers, {self.effective_rows:.0f} "
            "effective)"
        )
        return ". ".join((said, *self.warnings))


def estimate_change(
    log: DiscountLog,
    policy_R: _Ints,
    instead_of_R: _Ints,
    *,
    overlap: OverlapRules | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate how the outcome changes if depths are ``policy_R`` and not ``instead_of_R``.

    Both policies may look at the features of a row, never at what was offered in it or at what
    came of it. Rows at which they agree cancel out, and with them their noise. The interval is
    Student's, over users; it counts customers like these, not these alone.

    Args:
        log: see `DiscountLog`.
        policy_R: index of the depth that the policy gives in each row.
        instead_of_R: the same of what it is compared with: a flat depth, or depths by segment.
        overlap: when to refuse.
        confidence: of the interval.

    Raises:
        DataError: too little overlap between log and policies, fewer than two users, or shapes
            that do not fit.
    """
    overlap = overlap or OverlapRules()
    shape = log.propensity_RD.shape
    for name, choice in (("policy_R", policy_R), ("instead_of_R", instead_of_R)):
        if len(choice) != shape[0]:
            raise DataError(f"{name} has {len(choice)} entries for {shape[0]} rows.")
        _check_choice(choice, shape, name)
    _, user_R = np.unique(log.user_R, return_inverse=True)
    users = int(user_R.max(initial=-1)) + 1
    if users < 2:
        raise DataError(f"the log has {users} users; an uncertainty needs two or more.")
    effective, below, warnings = _overlap(log, (policy_R, instead_of_R), overlap)
    parts = [_scores(log, choice) for choice in (policy_R, instead_of_R)]
    change_R = parts[0] - parts[1]
    change = float(change_R.mean())
    # Influence of a user on a mean over rows: the sum of its rows' distances from the mean.
    influence_U = np.bincount(user_R, weights=change_R - change, minlength=users) / shape[0]
    error = float(np.sqrt(users / (users - 1) * (influence_U**2).sum()))
    reach = float(stats.t.ppf((1 + confidence) / 2, users - 1)) * error
    each = np.arange(shape[0])
    predicted_R = log.predicted_RD[each, policy_R] - log.predicted_RD[each, instead_of_R]
    return Estimate(
        change=change,
        standard_error=error,
        low=change - reach,
        high=change + reach,
        confidence=confidence,
        predicted=float(predicted_R.mean()),
        rows=shape[0],
        users=users,
        effective_rows=effective,
        rows_below=below,
        warnings=warnings,
    )


def fit_propensities(
    feature_RF: _Floats, shown_R: _Ints, user_R: _Ints, *, depths: int, folds: int = 5
) -> _Floats:
    """Return the chance of each depth to be offered, (R, depths), by multinomial regression.

    Cross-fitted: a row's chances come from a regression on other users' rows. A depth that those
    never saw has chance 0, which `DiscountLog` and the overlap check take up. For a log whose
    propensities were not kept; where they are known, use them.

    Args:
        feature_RF: what the offer may have depended on. What is not here confounds.
        shown_R: index of the depth that was offered.
        user_R: all rows of a user lie in the same fold.
        depths: columns of the result.
        folds: at most; fewer where there are fewer users.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: fewer than two users.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise ConfigError(
            "propensities are fitted with scikit-learn: install silotune[simulation]."
        ) from None
    users = len(np.unique(user_R))
    if users < 2:
        raise DataError(f"the log has {users} users; cross-fitting needs two or more.")
    out_RD = np.zeros((len(shown_R), depths))
    for fit, held_out in GroupKFold(min(folds, users)).split(feature_RF, groups=user_R):
        seen = np.unique(shown_R[fit])
        if len(seen) == 1:
            out_RD[held_out, seen[0]] = 1.0
            continue
        model = LogisticRegression(C=10.0, max_iter=1000).fit(feature_RF[fit], shown_R[fit])
        out_RD[np.ix_(held_out, model.classes_)] = model.predict_proba(feature_RF[held_out])
    return out_RD


def _scores(log: DiscountLog, choice_R: _Ints) -> _Floats:
    """Return each row's doubly robust score of a policy: prediction and correction."""
    each = np.arange(len(choice_R))
    expected_R = log.predicted_RD[each, choice_R]
    agrees_R = np.flatnonzero(log.shown_R == choice_R)
    score_R: _Floats = expected_R.copy()
    chance_R = log.propensity_RD[agrees_R, choice_R[agrees_R]]
    score_R[agrees_R] += (log.outcome_R[agrees_R] - expected_R[agrees_R]) / chance_R
    return score_R


def _overlap(
    log: DiscountLog, policies: tuple[_Ints, _Ints], rules: OverlapRules
) -> tuple[float, float, tuple[str, ...]]:
    """Return effective rows, share of rows below the threshold, and warnings; or refuse."""
    each = np.arange(len(log.user_R))
    # Rows at which the policies agree say nothing and need nothing.
    differ_R = policies[0] != policies[1]
    if not differ_R.any():
        return float(len(each)), 0.0, ("The two policies are the same in every row",)
    effective, below_R = np.inf, np.zeros(len(each), dtype=bool)
    for choice in policies:
        chance_R = log.propensity_RD[each, choice]
        below_R |= differ_R & (chance_R < rules.least_propensity)
        matched = differ_R & (log.shown_R == choice)
        weight = 1 / chance_R[matched]
        effective = min(
            effective, float(weight.sum() ** 2 / (weight**2).sum() if len(weight) else 0)
        )
    share = float(below_R.mean())
    if effective < rules.least_effective_rows:
        raise DataError(
            f"the log agrees with a policy in {effective:.0f} effective rows; "
            f"{rules.least_effective_rows:g} are needed (least_effective_rows). Compare policies "
            "that are closer to what was offered, or log more varied depths."
        )
    if share > rules.most_rows_below:
        raise DataError(
            f"in {share:.1%} of the rows a policy gives a depth that was offered with a chance "
            f"below {rules.least_propensity:g}; {rules.most_rows_below:.1%} are the limit "
            "(most_rows_below). No log can say what such depths would have done."
        )
    if not share:
        return effective, share, ()
    words = (
        f"In {share:.1%} of the offers a policy gives a depth that was hardly ever offered to such "
        "customers; there the estimate leans on the model"
    )
    return effective, share, (words,)


def _check_choice(choice_R: _Ints, shape: tuple[int, ...], name: str) -> None:
    if len(choice_R) and (choice_R.min() < 0 or choice_R.max() >= shape[1]):
        raise DataError(f"{name} must hold indices from 0 to {shape[1] - 1}.")
