"""Quality by group: right by hand, nobody's figures alone, and chance told from difference."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fairness import groups_markdown, quality_by_group, user_groups
from client.outcomes import Outcomes
from client.score import Asked, Scored, score_parts
from client.score_settings import score_settings
from silotune.errors import ConfigError
from silotune.tasks.base import Examples
from silotune.tasks.metrics import auc
from silotune.tasks.objective import Binary
from tests.client.scoring import SEGMENT, exported


def scored(label, logit, user, date=None, objective=None, visit=None):
    count = len(label)
    names = [f"u{n}" for n in user]
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=np.zeros((count, 1), np.float32),
        label_EK=np.asarray(label, np.float32).reshape(count, 1),
        user_E=np.asarray(user),
        visit_E=np.arange(count) if visit is None else np.asarray(visit),
        group=[""] * count,
        test_E=np.ones(count, bool),
        objective=objective or Binary(),
        keys={"user_id": names},
    )
    logit_EK = np.asarray(logit, np.float32).reshape(count, 1)
    return Scored(
        examples=examples,
        rows=np.arange(count),
        logit_EK=logit_EK,
        score_EK=examples.objective.scores(logit_EK),
        date=date,
    )


def made(noise_of, users=120, each=6, seed=0):
    """Users 0.. in turn of group a and b; the logit says the label up to a group's noise."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    label = generator.integers(0, 2, len(user))
    noise = np.array([noise_of["ab"[u % 2]] for u in user])
    logit = label + noise * generator.normal(size=len(user))
    groups = {"kind": {f"u{u}": "ab"[u % 2] for u in range(users)}}
    return scored(label, logit, user), groups


def test_values_are_those_of_each_groups_rows():
    one, groups = made({"a": 0.3, "b": 3.0})
    (found,) = quality_by_group([Outcomes.of(one)], groups, draws=20)
    label, logit = one.examples.label_EK[:, 0], one.logit_EK[:, 0]
    for group in found.groups:
        own = np.array([groups["kind"][n] == group.name for n in one.examples.keys["user_id"]])
        assert group.value == pytest.approx(auc(label[own], logit[own]))
        assert group.users == 60
        assert group.low < group.value < group.high
    values = [g.value for g in found.groups]
    assert found.gap == pytest.approx(max(values) - min(values))
    assert (found.attribute, found.metric) == ("kind", "auc")


@dataclass(frozen=True)
class Ranked(Binary):
    """Visits count."""

    main: ClassVar[str] = "ndcg"
    ranked: bool = True


@given(st.lists(st.integers(0, 59), max_size=5), st.integers(0, 9))
def test_however_customers_are_divided_into_parts_the_result_is_one(cuts, seed):
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(60), 9)
    label = generator.integers(0, 2, len(user))
    logit = generator.normal(size=len(user))
    groups = {"kind": {f"u{u}": "ab"[u % 2] for u in range(60)}}
    visit = np.arange(len(user)) // 3

    def part(low, high):
        rows = (user >= low) & (user < high)
        # A part counts its own visits.
        own = visit[rows] - visit[rows].min()
        return Outcomes.of(
            scored(label[rows], logit[rows], user[rows], objective=Ranked(), visit=own)
        )

    edges = sorted({0, *cuts, 60})
    parts = [part(low, high) for low, high in pairwise(edges)]
    (whole,) = quality_by_group([part(0, 60)], groups, draws=3)
    (found,) = quality_by_group(parts, groups, draws=3)
    assert whole.metric == "ndcg"
    assert [g.users for g in found.groups] == [30, 30]
    for one, other in zip([whole, *whole.groups], [found, *found.groups], strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert (whole.gap, whole.chance) == pytest.approx((found.gap, found.chance))


@pytest.mark.parametrize(
    ("noise", "verdict"),
    [({"a": 0.3, "b": 3.0}, "more than by chance"), ({"a": 1, "b": 1}, "no more than by chance")],
)
def test_a_difference_is_told_from_chance(noise, verdict):
    one, groups = made(noise)
    (found,) = quality_by_group([Outcomes.of(one)], groups, draws=100)
    assert found.verdict == verdict
    assert found.low < found.gap < found.high
    if noise["a"] != noise["b"]:
        assert found.low > found.chance


def test_chance_is_what_equal_groups_stay_below():
    below = 0
    for seed in range(24):
        one, groups = made({"a": 1, "b": 1}, users=60, each=2, seed=seed)
        (found,) = quality_by_group([Outcomes.of(one)], groups, draws=40, seed=seed)
        below += found.gap <= found.chance
    # About 22.5 are expected, and 2 less is common.
    assert 19 <= below <= 24


def test_intervals_are_over_customers_not_rows():
    # Twenty copies of each row say no more than one.
    one, groups = made({"a": 1, "b": 1}, users=60, each=2)
    (few,) = quality_by_group([Outcomes.of(one)], groups, draws=100)
    rows = np.tile(np.arange(len(one.rows)), 20)
    user = one.examples.user_E[rows]
    copies = scored(one.examples.label_EK[rows, 0], one.logit_EK[rows, 0], user)
    (many,) = quality_by_group([Outcomes.of(copies)], groups, draws=100)
    widths = [g.high - g.low for g in few.groups]
    assert [g.high - g.low for g in many.groups] == pytest.approx(widths, rel=0.35)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=150))
def test_no_group_that_is_shown_has_fewer_customers_than_the_minimum(values):
    user = np.repeat(np.arange(len(values)), 2)
    one = scored(user % 2, user, user)
    groups = {"kind": {f"u{i}": v for i, v in enumerate(values) if v != "g"}}
    (found,) = quality_by_group([Outcomes.of(one)], groups, draws=1)
    counts = Counter("not stated" if v == "g" else v for v in values)
    large = {v: n for v, n in counts.items() if n >= 20}
    rest = sum(counts.values()) - sum(large.values())
    expected = large | ({"other": rest} if rest >= 20 else {})
    shown = {g.name: g.users for g in found.groups}
    assert shown == (expected if len(expected) > 1 else {})
    page = groups_markdown([found], "T", 20)
    assert ("No two groups of 20 customers." in page) == (len(expected) < 2)


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        ({"a": 40, "b": 19}, {}),
        ({"a": 40, "b": 20}, {"a": 40, "b": 20}),
        ({"a": 40, "b": 10, "c": 9}, {}),
        ({"a": 40, "b": 10, "c": 10}, {"a": 40, "other": 20}),
    ],
)
def test_nineteen_customers_are_no_group(kinds, shown):
    one, _ = made({"a": 1.0, "b": 1.0}, users=sum(kinds.values()))
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    groups = {"kind": {f"u{u}": kind for u, kind in enumerate(names)}}
    (found,) = quality_by_group([Outcomes.of(one)], groups, draws=2)
    assert {g.name: g.users for g in found.groups} == shown


def test_a_group_without_an_answer_takes_no_part_in_the_gap():
    user = np.arange(75)
    label = np.where(user % 3 == 2, 1, user % 2)
    one = scored(label, user % 7, user)
    groups = {"kind": {f"u{u}": "abc"[u % 3] for u in user}}
    (found,) = quality_by_group([Outcomes.of(one)], groups, draws=30)
    by_name = {g.name: g for g in found.groups}
    assert np.isnan(by_name["c"].value)
    assert found.gap == pytest.approx(abs(by_name["a"].value - by_name["b"].value))


def test_what_cannot_be_asked_is_refused():
    one, groups = made({"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="least_users is 19"):
        quality_by_group([Outcomes.of(one)], groups, least_users=19)
    import datetime as dt

    of_a_date = scored([0], [0], [0], date=dt.datetime.fromisoformat("2024-04-10"))
    with pytest.raises(ConfigError, match="needs outcomes"):
        Outcomes.of(of_a_date)
    nobodys = replace(one, examples=replace(one.examples, keys={"item_id": one.examples.text}))
    with pytest.raises(ConfigError, match="whose its examples are"):
        Outcomes.of(nobodys)


def test_attributes_are_those_of_the_users_table(silo, tmp_path):
    exported(SEGMENT, tmp_path / "a")
    found = user_groups(silo)
    table = pq.read_table(silo.path / "users.parquet")
    rows = zip(table["user_id"].to_pylist(), table["age"].to_pylist(), strict=True)
    # Not everyone says.
    assert found == {"age": {user: age for user, age in rows if age is not None}}
    assert 10 < len(found["age"]) < len(table)
    # What was sent to them is no attribute of theirs.
    sent = table.append_column("campaigns", pa.array(["mail 1"] * len(table)))
    pq.write_table(sent, silo.path / "users.parquet")
    assert user_groups(silo) == found
    # Eighteen customers: no group is large enough.
    settings = score_settings(silo.path, SEGMENT.name, adapter=tmp_path / "a")
    parts = score_parts(settings, silo, Asked(own_examples=True), customers_at_once=7)
    (one,) = quality_by_group([Outcomes.of(p) for p in parts], found)
    assert one.groups == ()
    assert one.verdict == "not known"
    # An empty value says nothing.
    empty = table.set_column(1, "age", pa.array([None, ""] + ["x"] * (len(table) - 2)))
    pq.write_table(empty, silo.path / "users.parquet")
    assert len(user_groups(silo)["age"]) == len(table) - 2
    (silo.path / "users.parquet").unlink()
    assert user_groups(silo) == {}
