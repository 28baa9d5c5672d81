"""Discounts over an audience: against the best there is, and never outside the rules."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

import client.allocation
from client.allocation import Audience, CampaignRules, allocate
from silotune.errors import ConfigError, DataError

GRID = np.array([0.0, 0.1, 0.2, 0.3])


def an_audience(users, seed=0, depths=GRID, kind=()):
    rng = np.random.default_rng(seed)
    level, slope = rng.normal(-1.5, 1, users), rng.gamma(4, 2, users)
    price = rng.uniform(1, 20, users)
    chance = 1 / (1 + np.exp(-(level[:, None] + slope[:, None] * depths)))
    cost = price * rng.uniform(0.3, 0.8, users)
    return Audience(depth_D=depths, chance_UD=chance, price_U=price, unit_cost_U=cost, kind=kind)


def best_of_all(audience, rules):
    """Try every allocation."""
    profit, spend = audience.profits(), audience.spends()
    allowed, each = rules.allowed(audience), np.arange(len(profit))
    best = 0.0
    for choice in itertools.product(range(len(audience.depth_D)), repeat=len(profit)):
        picked = np.array(choice)
        if allowed[each, picked].all() and spend[each, picked].sum() <= rules.budget:
            best = max(best, float(profit[each, picked].sum()))
    return best


def relaxed(audience, rules):
    """Solve the linear relaxation with HiGHS."""
    profit, spend = audience.profits(), audience.spends()
    users, depths = profit.shape
    once = sparse.kron(sparse.eye(users), np.ones((1, depths)))
    found = optimize.linprog(
        -np.where(rules.allowed(audience), profit, -1e6).ravel(),
        A_ub=sparse.vstack([once, spend.ravel()[None]]).tocsr(),
        b_ub=np.append(np.ones(users), rules.budget),
        bounds=(0, 1),
    )
    return -found.fun


def held_to(audience, rules, found):
    """Assert what must hold of any allocation."""
    each = np.arange(len(found.choice_U))
    assert rules.allowed(audience)[each, found.choice_U].all()
    assert found.spend == pytest.approx(audience.spends()[each, found.choice_U].sum())
    assert found.profit == pytest.approx(audience.profits()[each, found.choice_U].sum())
    assert found.spend <= rules.budget * (1 + 1e-9)
    assert -1e-6 <= found.profit <= found.bound + 1e-6


def test_two_customers_are_as_worked_out_by_hand():
    # At 10 each, costing 4: no discount earns 6 a sale, half price 1.
    audience = Audience(
        depth_D=np.array([0.0, 0.5]),
        chance_UD=np.array([[0.1, 0.9], [0.5, 0.6]]),
        price_U=np.array([10.0, 10.0]),
        unit_cost_U=np.array([4.0, 4.0]),
    )
    assert audience.profits() == pytest.approx(np.array([[0, 0.9 - 0.6], [0, 0.6 - 3.0]]))
    assert audience.spends() == pytest.approx(np.array([[0, 4.5], [0, 3.0]]))
    found = allocate(audience, CampaignRules(budget=4.5))
    assert found.choice_U.tolist() == [1, 0]
    assert (found.profit, found.spend) == pytest.approx((0.3, 4.5))
    assert found.bound == pytest.approx(0.3)
    nothing = allocate(audience, CampaignRules(budget=4.4))
    assert nothing.choice_U.tolist() == [0, 0]
    # The relaxation splits the customer.
    assert nothing.bound == pytest.approx(0.3 * 4.4 / 4.5)
    assert nothing.shadow_price == pytest.approx(0.3 / 4.5)
    # Half price leaves 1 of 5.
    assert allocate(audience, CampaignRules(budget=9, margin_floor=0.2)).choice_U.sum() == 1
    assert allocate(audience, CampaignRules(budget=9, margin_floor=0.21)).choice_U.sum() == 0


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0, 12), st.floats(-0.2, 0.6))
def test_few_customers_get_the_best_allocation_there_is(seed, budget, floor):
    audience, rules = an_audience(5, seed), CampaignRules(budget=budget, margin_floor=floor)
    found = allocate(audience, rules)
    held_to(audience, rules, found)
    assert found.profit == pytest.approx(best_of_all(audience, rules), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.2, 0.7, 2.0])
def test_many_customers_come_within_one_customer_of_the_bound(seed, share):
    audience = an_audience(300, seed, np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4]))
    free = allocate(audience, CampaignRules(budget=1e9))
    rules = CampaignRules(budget=share * free.spend, margin_floor=0.05)
    found = allocate(audience, rules)
    held_to(audience, rules, found)
    assert found.bound == pytest.approx(relaxed(audience, rules), rel=1e-6)
    most = audience.profits()[rules.allowed(audience)].max()
    assert found.profit >= found.bound - most
    if share < 1:
        assert found.shadow_price > 0
    else:
        # Everyone has their own best depth.
        assert (found.shadow_price, found.gap) == (0, pytest.approx(0, abs=1e-9))
        allowed = np.where(rules.allowed(audience), audience.profits(), -np.inf)
        assert found.profit == pytest.approx(allowed.max(axis=1).sum())


@pytest.mark.parametrize("seed", range(10))
def test_rounding_comes_near_the_best_of_few_customers_and_keeps_within_the_budget(
    seed, monkeypatch
):
    audience, rules = an_audience(8, seed), CampaignRules(budget=3.0)
    exact = allocate(audience, rules)
    monkeypatch.setattr(client.allocation, "_COMBINATIONS", 1)
    rounded = allocate(audience, rules)
    held_to(audience, rules, rounded)
    assert rounded.profit <= exact.profit + 1e-9
    assert exact.profit - rounded.profit <= audience.profits().max()


def test_a_step_is_not_taken_without_the_one_before_it(monkeypatch):
    # 27 for the first step, 4 more for the second: the second alone is within the budget.
    audience = Audience(
        depth_D=np.array([0.0, 0.3, 0.31]),
        chance_UD=np.array([[0.0, 0.9, 1.0]]),
        price_U=np.array([100.0]),
        unit_cost_U=np.array([0.0]),
    )
    monkeypatch.setattr(client.allocation, "_COMBINATIONS", 1)
    for budget, depth in ((10.0, 0), (27.5, 1), (31.0, 2)):
        rules = CampaignRules(budget=budget)
        found = allocate(audience, rules)
        held_to(audience, rules, found)
        assert found.choice_U.tolist() == [depth]


def test_a_group_gets_one_depth_that_all_of_it_may_have():
    kind = ["new"] * 30 + ["old"] * 30
    audience = an_audience(60, 1, kind=kind)
    rules = CampaignRules(budget=1e6, deepest={"new": 0.1})
    alone = allocate(audience, rules)
    held_to(audience, rules, alone)
    assert GRID[alone.choice_U[:30]].max() == 0.1
    assert GRID[alone.choice_U[30:]].max() == 0.3
    flat = allocate(audience, rules, group_U=np.zeros(60))
    segments = allocate(audience, rules, group_U=np.array([k == "old" for k in kind]))
    assert len(set(flat.choice_U.tolist())) == 1
    assert flat.choice_U.max() <= 1
    assert all(len(set(segments.choice_U[s].tolist())) == 1 for s in (slice(30), slice(30, 60)))
    assert flat.profit <= segments.profit <= alone.profit


def test_no_audience_gets_no_discount():
    audience = an_audience(0)
    found = allocate(audience, CampaignRules(budget=5))
    assert (found.profit, found.spend, found.bound, found.gap) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_D": np.array([0.1, 0.2])}, "must begin with 0"),
        ({"depth_D": np.array([0.0, 1.0])}, "end below 1"),
        ({"depth_D": np.array([0.0, 0.3, 0.2])}, "must rise"),
        ({"chance_UD": np.zeros((2, 3))}, "chance_UD is"),
        ({"chance_UD": np.array([[0.1, 0.2], [0.1, np.nan]])}, "row 1: chances"),
        ({"price_U": np.array([0.0, 1.0])}, "row 0"),
        ({"kind": ["a"]}, "kind has 1 entries for 2 customers"),
    ],
)
def test_an_audience_that_cannot_be_is_refused(change, message):
    sound = {
        "depth_D": np.array([0.0, 0.2]),
        "chance_UD": np.array([[0.1, 0.2], [0.1, 0.3]]),
        "price_U": np.ones(2),
        "unit_cost_U": np.zeros(2),
    }
    Audience(**sound)
    with pytest.raises(DataError, match=message):
        Audience(**sound | change)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": -1.0}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": 1.0, "margin_floor": 1.0}, "margin_floor"),
        ({"budget": 1.0, "deepest": {"a": 1.5}}, "deepest of 'a'"),
    ],
)
def test_rules_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CampaignRules(**wrong)


def test_a_rule_for_nobody_is_an_error():
    with pytest.raises(ConfigError, match="'gold', of which the audience has nobody"):
        allocate(an_audience(3), CampaignRules(budget=1, deepest={"gold": 0.1}))
