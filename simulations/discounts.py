"""Personalised discounts on synthetic people, from the log to the estimate, beside the truth.

Half of a merchant's customers teach response curves. For the other half a campaign's budget is
allocated by those curves, and the same budget to one flat depth and to depths by segment. The
doubly robust estimate of what personal depths earn more is held against the planted truth.

    python -m simulations.discounts --seeds 50

Shape suffixes: R offers, F features, D depths, K outputs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from client.allocation import Allocation, Audience, CampaignRules, allocate
from client.discount_value import DiscountLog, Estimate, estimate_change, fit_propensities
from silotune.tables.synthetic_discounts import DEPTHS, PersonalOffers, personal_offers
from silotune.tables.synthetic_world import SyntheticConfig
from silotune.tasks.dose_response import DoseResponse

__all__ = ["Comparison", "ResponseCurves", "compare"]

_Floats = NDArray[np.float64]

_SEGMENT_EDGES = (1 / 3, 2 / 3)
"""Public edges of the share of purchases on deal: what a merchant would segment by."""
_BUDGET_SHARE = 0.6
"""Of what the most profitable allocation without a budget would spend."""


@dataclass(frozen=True, slots=True, eq=False)
class ResponseCurves:
    """Level and sensitivity, each linear in the features: a small `DoseResponse` model."""

    weight_FK: _Floats
    """The last row is the intercept."""
    objective: DoseResponse

    @classmethod
    def fit(
        cls, feature_RF: _Floats, dose_R: _Floats, yes_R: _Floats, *, penalty: float = 0.5
    ) -> "ResponseCurves":
        """Fit by maximum likelihood with a small L2 penalty on all but the intercepts."""
        objective = DoseResponse()
        x_RF = np.column_stack([feature_RF, np.ones(len(feature_RF))])

        def loss(flat: _Floats) -> tuple[float, _Floats]:
            weight_FK = flat.reshape(-1, 2)
            out_RK = x_RF @ weight_FK
            logit_R = out_RK[:, 0] + objective.slopes(out_RK) * dose_R
            error_R = 1 / (1 + np.exp(-logit_R)) - yes_R
            # The derivative of softplus is the logistic function.
            steep_R = objective.steepness * dose_R / (1 + np.exp(-out_RK[:, 1]))
            gradient_FK = x_RF.T @ np.column_stack([error_R, error_R * steep_R])
            held_FK = np.vstack([weight_FK[:-1], np.zeros((1, 2))])
            value = np.logaddexp(0, np.where(yes_R > 0, -logit_R, logit_R)).sum()
            value += penalty / 2 * (held_FK**2).sum()
            return float(value), (gradient_FK + penalty * held_FK).ravel()

        found = optimize.minimize(loss, np.zeros(2 * x_RF.shape[1]), jac=True, method="L-BFGS-B")
        return cls(found.x.reshape(-1, 2), objective)

    def chances(self, feature_RF: _Floats) -> _Floats:
        """Return the chance to buy at each depth of `DEPTHS`, (R, D)."""
        out_RK = np.column_stack([feature_RF, np.ones(len(feature_RF))]) @ self.weight_FK
        return self.objective.curve(out_RK, DEPTHS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Personal depths beside a simpler policy: what the log says, and what is true."""

    against: str
    estimate: Estimate
    truth: float
    """Change of expected profit per offer, over the same offers."""

    @property
    def covered(self) -> bool:
        """Whether the interval holds the truth."""
        return self.estimate.low <= self.truth <= self.estimate.high


def compare(
    settings: SyntheticConfig, *, offers_per_user: int = 4, known: bool = True
) -> list[Comparison]:
    """Compare personal depths with one flat depth and with depths by segment.

    Args:
        settings: of the synthetic people; its first merchant is used.
        offers_per_user: logged offers of each.
        known: use the propensities of the log; False: fit them, as where they were not kept.
    """
    offers = personal_offers(settings, offers_per_user=offers_per_user)
    teaches_R = offers.user_R % 2 == 0
    curves = ResponseCurves.fit(
        offers.feature_RF[teaches_R],
        DEPTHS[offers.shown_R[teaches_R]],
        offers.bought_R[teaches_R],
    )
    rows = np.flatnonzero(~teaches_R)
    audience = Audience(
        depth_D=DEPTHS,
        chance_UD=curves.chances(offers.feature_RF[rows]),
        price_U=offers.price_R[rows],
        unit_cost_U=offers.unit_cost_R[rows],
    )
    free = allocate(audience, CampaignRules(budget=1e12))
    rules = CampaignRules(budget=_BUDGET_SHARE * free.spend)
    personal = allocate(audience, rules)
    segment_R = np.digitize(offers.feature_RF[rows, 0], _SEGMENT_EDGES)
    others = {
        "one flat depth": allocate(audience, rules, group_U=np.zeros(len(rows), np.int64)),
        "depth by segment": allocate(audience, rules, group_U=segment_R),
    }
    log, true_RD = _log(offers, rows, audience, known=known)
    each = np.arange(len(rows))

    def one(against: str, other: Allocation) -> Comparison:
        truth_R = true_RD[each, personal.choice_U] - true_RD[each, other.choice_U]
        found = estimate_change(log, personal.choice_U, other.choice_U)
        return Comparison(against=against, estimate=found, truth=float(truth_R.mean()))

    return [one(against, other) for against, other in others.items()]


def _log(
    offers: PersonalOffers, rows: NDArray[np.int64], audience: Audience, *, known: bool
) -> tuple[DiscountLog, _Floats]:
    """Return the log of profit, and the expected profit that is true at each depth."""
    margin_RD = audience.price_U[:, None] * (1 - DEPTHS) - audience.unit_cost_U[:, None]
    shown_R = offers.shown_R[rows]
    propensity_RD = (
        offers.propensity_RD[rows]
        if known
        else fit_propensities(
            offers.feature_RF[rows], shown_R, offers.user_R[rows], depths=len(DEPTHS)
        )
    )
    log = DiscountLog(
        user_R=offers.user_R[rows],
        shown_R=shown_R,
        outcome_R=offers.bought_R[rows] * margin_RD[np.arange(len(rows)), shown_R],
        propensity_RD=propensity_RD,
        predicted_RD=audience.chance_UD * margin_RD,
    )
    return log, offers.true_chance_RD[rows] * margin_RD


def main(arguments: Sequence[str] | None = None) -> None:
    """Repeat the comparison over seeds; print coverage of the truth and intervals above 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--fitted", action="store_true", help="fit the propensities")
    asked = parser.parse_args(arguments)
    found = [
        compare(
            SyntheticConfig(merchants=1, users_per_merchant=asked.users, seed=seed),
            known=not asked.fitted,
        )
        for seed in range(asked.seeds)
    ]
    for runs in zip(*found, strict=True):
        change = np.array([r.estimate.change for r in runs])
        truth = np.array([r.truth for r in runs])
        error = np.array([r.estimate.standard_error for r in runs])
        print(
            f"against {runs[0].against}: truth {truth.mean():+.4f}, estimate {change.mean():+.4f}, "
            f"standard error {error.mean():.4f}, spread around the truth "
            f"{(change - truth).std():.4f}, covered {np.mean([r.covered for r in runs]):.0%}, "
            f"above 0 {np.mean([r.estimate.low > 0 for r in runs]):.0%} of {len(runs)}"
        )


if __name__ == "__main__":
    main()
