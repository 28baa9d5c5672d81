"""Who gets which discount: the most expected profit that a campaign's budget can buy.

Each customer gets one depth of a public grid, or none. Whoever would have bought anyway costs the
discount and brings nothing; whoever buys because of it brings the margin that is left. With one
budget over all customers this is the multiple-choice knapsack problem. Its linear relaxation is
solved exactly: each customer's upgrades lie on the upper hull of (spend, profit), and are taken in
the order of profit per unit of spend (Sinha and Zoltners 1979, doi:10.1287/opre.27.3.503). At most
one customer is then split, so that what rounding loses is below one customer's profit. Where few
groups must each have one depth, every combination is tried.

Nothing here is released: it reads a merchant's own predictions, on the merchant's machine.

Shape suffixes: U customers, D depths, G groups, S upgrades.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.config import config
from silotune.errors import ConfigError, DataError

__all__ = ["Allocation", "Audience", "CampaignRules", "allocate"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

_COMBINATIONS = 200_000
"""Up to so many are tried one and all: no rounding of a few groups comes near their best."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Audience:
    """What is expected of each customer at each depth. Money in the currency of the tables."""

    depth_D: _Floats
    """Public grid of shares of the price, rising from 0, below 1. The first is no discount."""
    chance_UD: _Floats
    """Chance that the customer buys at each depth: `DoseResponse.curve`."""
    price_U: _Floats
    """List price of what the customer is offered."""
    unit_cost_U: _Floats
    """What one sale costs the merchant: purchase price and handling."""
    kind: Sequence[str] = ()
    """Segment or category of each row, for the rules; empty: all are alike."""

    def __post_init__(self) -> None:
        """Check shapes and ranges. Raises DataError."""
        depth_D, users = self.depth_D, len(self.price_U)
        if not (depth_D.ndim == 1 and depth_D.size and depth_D[0] == 0 and depth_D[-1] < 1):
            raise DataError(f"depth_D is {depth_D}; it must begin with 0 and end below 1.")
        if not (np.diff(depth_D) > 0).all():
            raise DataError(f"depth_D is {depth_D}; it must rise.")
        if self.chance_UD.shape != (users, len(depth_D)) or self.unit_cost_U.shape != (users,):
            raise DataError(
                f"chance_UD is {self.chance_UD.shape} and unit_cost_U {self.unit_cost_U.shape} for "
                f"{users} prices and {len(depth_D)} depths."
            )
        if len(self.kind) not in (0, users):
            raise DataError(f"kind has {len(self.kind)} entries for {users} customers.")
        # `not` catches NaN.
        wrong = ~((self.chance_UD >= 0) & (self.chance_UD <= 1)).all(axis=1)
        wrong |= ~(np.isfinite(self.price_U) & (self.price_U > 0) & np.isfinite(self.unit_cost_U))
        if wrong.any():
            raise DataError(
                f"row {int(np.flatnonzero(wrong)[0])}: chances must be in [0, 1], prices above 0, "
                "costs finite."
            )

    def profits(self) -> _Floats:
        """Return the expected profit beside no discount, (U, D); 0 in the first column."""
        margin_UD = self.price_U[:, None] * (1 - self.depth_D) - self.unit_cost_U[:, None]
        earned_UD = self.chance_UD * margin_UD
        return earned_UD - earned_UD[:, :1]

    def spends(self) -> _Floats:
        """Return the expected discount that is given, (U, D); 0 in the first column."""
        return self.chance_UD * self.price_U[:, None] * self.depth_D


@config
class CampaignRules:
    """What a campaign may spend, and on which sales."""

    budget: float
    """Discount given, at most, as an expectation over the audience; currency of the tables."""
    margin_floor: float = 0.0
    """Margin after the discount, as a share of the price then paid, that a sale must leave."""
    deepest: Mapping[str, float] | None = None
    """Deepest discount for a segment or category; one that is not named has no limit."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 <= self.budget < np.inf:
            raise ConfigError(f"budget is {self.budget}; it must be at least 0.")
        if not -np.inf < self.margin_floor < 1:
            raise ConfigError(f"margin_floor is {self.margin_floor}; it must be below 1.")
        for kind, depth in (self.deepest or {}).items():
            if not 0 <= depth <= 1:
                raise ConfigError(f"deepest of '{kind}' is {depth}; it must be in [0, 1].")

    def allowed(self, audience: Audience) -> NDArray[np.bool_]:
        """Return which depths the rules allow, (U, D); no discount always is.

        Raises:
            ConfigError: a rule names a segment or category that the audience has not.
        """
        paid_UD = audience.price_U[:, None] * (1 - audience.depth_D)
        left_UD = paid_UD - audience.unit_cost_U[:, None]
        # As much as rounding of a product may take.
        allowed_UD: NDArray[np.bool_] = left_UD >= self.margin_floor * paid_UD - 1e-9 * paid_UD
        kind_U = np.asarray(audience.kind, dtype=object)
        for kind, deepest in (self.deepest or {}).items():
            rows = np.flatnonzero(kind_U == kind) if kind_U.size else np.empty(0, np.int64)
            if not rows.size:
                raise ConfigError(f"deepest names '{kind}', of which the audience has nobody.")
            allowed_UD[rows] &= audience.depth_D <= deepest + 1e-12
        allowed_UD[:, 0] = True
        return allowed_UD


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Allocation:
    """Who gets which depth, and what is expected of it."""

    choice_U: _Ints
    """Index into the grid of depths; 0 is no discount."""
    profit: float
    """Expected profit beside no discount for anyone."""
    spend: float
    """Expected discount given; within the budget."""
    bound: float
    """Profit of the linear relaxation: no allocation within the rules has more."""
    shadow_price: float
    """Profit that one more unit of budget would bring; 0 where the budget is not used up."""

    @property
    def gap(self) -> float:
        """Share of the bound that is not reached, at most; 0 is the best there is."""
        return (self.bound - self.profit) / self.bound if self.bound > 0 else 0.0


def allocate(
    audience: Audience, rules: CampaignRules, *, group_U: ArrayLike | None = None
) -> Allocation:
    """Choose each customer's depth so that the expected profit is largest.

    Args:
        audience: what is expected of each customer.
        rules: budget and limits.
        group_U: customers of one group get the same depth, one that the rules allow for all of
            them: all zeros for one flat depth, a number per segment for depth by segment. None:
            each customer alone.

    Raises:
        ConfigError: as `CampaignRules.allowed`.
    """
    profit_UD, spend_UD = audience.profits(), audience.spends()
    allowed_UD = rules.allowed(audience)
    if group_U is None:
        inverse_U = np.arange(len(profit_UD))
    else:
        _, inverse_U = np.unique(np.asarray(group_U), return_inverse=True)
        profit_UD, spend_UD = _summed(profit_UD, inverse_U), _summed(spend_UD, inverse_U)
        allowed_UD = _summed((~allowed_UD).astype(np.float64), inverse_U) == 0
    profit_GD = np.where(allowed_UD, profit_UD, -np.inf)
    upgrades = _upgrades(profit_GD, spend_UD)
    taken, bound, price = _relaxed(upgrades, rules.budget)
    groups, depths = profit_GD.shape
    if groups * np.log(depths) <= np.log(_COMBINATIONS):
        choice_G = _exact(profit_GD, spend_UD, rules.budget)
    else:
        choice_G = _rounded(upgrades, taken, groups, rules.budget)
    each = np.arange(len(choice_G))
    return Allocation(
        choice_U=choice_G[inverse_U],
        profit=float(profit_GD[each, choice_G].sum()),
        spend=float(spend_UD[each, choice_G].sum()),
        bound=bound,
        shadow_price=price,
    )


def _summed(value_UD: _Floats, inverse_U: _Ints) -> _Floats:
    groups = int(inverse_U.max(initial=-1)) + 1
    columns = [np.bincount(inverse_U, weights=column, minlength=groups) for column in value_UD.T]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Upgrades:
    """Steps along the customers' hulls, the best return first."""

    group_S: _Ints
    depth_S: _Ints
    """Depth after the step."""
    profit_S: _Floats
    """Of the step alone."""
    spend_S: _Floats


def _upgrades(profit_GD: _Floats, spend_GD: _Floats) -> _Upgrades:
    each = np.arange(len(profit_GD))
    at_G = np.zeros(len(profit_GD), dtype=np.int64)
    parts = []
    # A hull of D points has at most D - 1 steps.
    for _ in range(profit_GD.shape[1] - 1):
        gain_GD = profit_GD - profit_GD[each, at_G][:, None]
        more_GD = spend_GD - spend_GD[each, at_G][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope_GD = np.where((gain_GD > 0) & (more_GD >= 0), gain_GD / more_GD, -np.inf)
        best_G = slope_GD.max(axis=1)
        # Of points on one line the farthest: the hull has no point between.
        on_line_GD = slope_GD >= best_G[:, None] * (1 - 1e-12)
        to_G = np.where(on_line_GD, more_GD, -np.inf).argmax(axis=1)
        rows = np.flatnonzero(best_G > 0)
        if not rows.size:
            break
        to = to_G[rows]
        parts.append((rows, to, gain_GD[rows, to], more_GD[rows, to]))
        at_G[rows] = to
    if not parts:
        empty, none = np.empty(0, np.int64), np.empty(0)
        return _Upgrades(empty, empty, none, none)
    group_S, depth_S, profit_S, spend_S = (np.concatenate(p) for p in zip(*parts, strict=True))
    with np.errstate(divide="ignore"):
        # Stable: a group's later steps, whose return is lower, stay behind its earlier ones.
        order = np.argsort(-profit_S / spend_S, kind="stable")
    return _Upgrades(group_S[order], depth_S[order], profit_S[order], spend_S[order])


def _relaxed(upgrades: _Upgrades, budget: float) -> tuple[int, float, float]:
    """Return how many upgrades fit whole, the relaxation's profit, and the price of budget."""
    total_S = np.cumsum(upgrades.spend_S)
    taken = int(np.searchsorted(total_S, budget, side="right"))
    profit = float(upgrades.profit_S[:taken].sum())
    if taken == len(total_S):
        return taken, profit, 0.0
    left = budget - (float(total_S[taken - 1]) if taken else 0.0)
    price = float(upgrades.profit_S[taken] / upgrades.spend_S[taken])
    return taken, profit + left * price, price


def _rounded(upgrades: _Upgrades, taken: int, groups: int, budget: float) -> _Ints:
    """Take the upgrades that fit whole, then those behind them that still fit."""
    choice_G = np.zeros(groups, dtype=np.int64)
    # In order: a group's last step stands.
    choice_G[upgrades.group_S[:taken]] = upgrades.depth_S[:taken]
    left = budget - float(upgrades.spend_S[:taken].sum())
    blocked = np.zeros(groups, dtype=bool)
    least_S = np.minimum.accumulate(upgrades.spend_S[::-1])[::-1]
    for step in range(taken, len(upgrades.group_S)):
        if least_S[step] > left:
            break
        group = upgrades.group_S[step]
        if blocked[group]:
            continue
        if upgrades.spend_S[step] <= left:
            choice_G[group] = upgrades.depth_S[step]
            left -= float(upgrades.spend_S[step])
        else:
            # Its next step starts from where this one would have led.
            blocked[group] = True
    return choice_G


def _exact(profit_GD: _Floats, spend_GD: _Floats, budget: float) -> _Ints:
    """Try every combination of the groups' depths."""
    profit_C, spend_C = np.zeros(1), np.zeros(1)
    for profit_D, spend_D in zip(profit_GD, spend_GD, strict=True):
        profit_C = np.add.outer(profit_C, profit_D).ravel()
        spend_C = np.add.outer(spend_C, spend_D).ravel()
    best = int(np.where(spend_C <= budget, profit_C, -np.inf).argmax())
    return np.array(np.unravel_index(best, (profit_GD.shape[1],) * len(profit_GD)), dtype=np.int64)
