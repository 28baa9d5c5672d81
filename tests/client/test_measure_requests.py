"""A request for metrics is paid for before an example is scored, or refused whole."""

import shutil
from dataclasses import replace

import pytest
import torch

from client.prepared import PreparedExamples
from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.ledger import Ledger
from privacy.randomness import SeededSource
from silotune.errors import BudgetError, ConfigError, MessageError, PolicyError
from silotune.messages import MetricsRequest

DELTA = 1e-3
COST = epsilon_spent([GaussianEvent(sampling_rate=1.0, noise_multiplier=8.0, steps=1)], delta=DELTA)


@pytest.fixture
def unscored(monkeypatch):
    """Scoring an example fails the test."""
    monkeypatch.setattr(PreparedExamples, "scores", lambda *_, **__: pytest.fail("scored"))


@pytest.mark.parametrize(
    ("policy", "asked", "limits"),
    [
        ({"metrics": {}}, {}, {"metrics"}),
        ({"metrics": {"errors": 9.0}}, {}, {"metrics"}),
        ({"metrics": {"scores": COST - 1e-6}}, {}, {"metrics"}),
        ({}, {"noise_multiplier": 1.0}, {"metrics"}),
        ({}, {"noise_multiplier": 1e-3}, {"metrics"}),
        ({}, {"errors": 1.0}, {"metrics"}),
        ({"mechanisms": ("gaussian",)}, {}, {"mechanism"}),
        ({"servers": ("other",)}, {}, {"server"}),
        ({"tasks": ("churn",), "delta": 0.1, "metrics": {}}, {}, {"task", "delta", "metrics"}),
    ],
)
def test_metrics_outside_the_policy_are_refused_whole_with_every_reason(
    measuring, policy, asked, limits, unscored
):
    make, ask, adapter, model = measuring
    with make(policy) as one:
        with pytest.raises(PolicyError) as caught:
            one.measure(replace(ask, metrics=ask.metrics | asked), adapter, model)
        assert set(caught.value.limits) == limits
        assert all(limit in str(caught.value) for limit in limits)
        assert [e.kind for e in one.ledger.entries] == ["genesis"]


def test_metrics_at_exactly_their_epsilon_are_within_the_policy(measuring):
    make, ask, adapter, model = measuring
    with make({"metrics": {"scores": COST}}) as one:
        one.measure(ask, adapter, model)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": float("inf")},
        {"bins": 10**9},
        {"bins": 2.5},
        {"bins": 0},
        {"outputs": 2},
        {"negative_weight": 0.0},
        {"negative_weight": 10.0},
        {"scores": 0.0},
        {"surprise": 1.0},
    ],
)
def test_impossible_plans_are_refused_before_anything_is_charged(measuring, change, unscored):
    make, ask, adapter, model = measuring
    with make() as one:
        with pytest.raises(ConfigError):
            one.measure(replace(ask, metrics=ask.metrics | change), adapter, model)
        assert one.ledger.events() == ()


def test_another_base_layout_or_adapter_is_refused(measuring, unscored):
    make, ask, adapter, model = measuring
    with make() as one:
        for request in (replace(ask, base_digest="x"), replace(ask, layout_digest="x")):
            with pytest.raises(MessageError):
                one.measure(request, adapter, model)
        for wrong in (torch.zeros(3), adapter + float("nan")):
            with pytest.raises(MessageError):
                one.measure(ask, wrong, model)
        assert one.ledger.events() == ()


def test_seeded_noise_is_refused_where_the_policy_does_not_allow_it(measuring, unscored):
    make, ask, adapter, model = measuring
    with make(source=SeededSource(1)) as one, pytest.raises(PolicyError, match="seeded"):
        one.measure(ask, adapter, model)


def test_the_charge_is_on_disk_before_the_first_example_is_scored(measuring, tmp_path, monkeypatch):
    make, ask, adapter, model = measuring
    scores, found = PreparedExamples.scores, []

    def look(*arguments, **named):
        # What another process would read, were this one killed now.
        copy = shutil.copytree(tmp_path / "ledger", tmp_path / f"copy{len(found)}")
        with Ledger(copy / "ledger.db") as ledger:
            found.append(ledger.spent(DELTA))
        return scores(*arguments, **named)

    monkeypatch.setattr(PreparedExamples, "scores", look)
    with make() as one:
        one.measure(ask, adapter, model)
    assert found == [pytest.approx(COST)]


def test_a_repeated_request_gets_the_same_bytes_and_scores_nothing(measuring, monkeypatch):
    make, ask, adapter, model = measuring
    with make() as one:
        first = one.measure(ask, adapter, model).vector()
    monkeypatch.setattr(PreparedExamples, "scores", lambda *_, **__: pytest.fail("scored"))
    with make() as one:
        assert torch.equal(one.measure(ask, adapter, model).vector(), first)
        assert len(one.ledger.events()) == 1
        # Another round: a new request, charged anew. One number another: not a second time.
        monkeypatch.undo()
        later = replace(ask, round=2)
        assert not torch.equal(one.measure(later, adapter, model).vector(), first)
        for other, vector in (
            (replace(later, metrics=ask.metrics | {"negative_weight": 0.5}), adapter),
            (later, adapter + 1e-3),
            (ask, adapter + 1e-3),
        ):
            with pytest.raises(PolicyError, match="comes after"):
                one.measure(other, vector, model)
        assert len(one.ledger.events()) == 2


@pytest.mark.parametrize("crash", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["scores", "release"])
def test_a_crash_between_charge_and_release_leaves_it_spent(measuring, monkeypatch, crash, where):
    make, ask, adapter, model = measuring

    def fail(*_, **__):
        raise crash

    with make() as one:
        if where == "scores":
            monkeypatch.setattr(PreparedExamples, "scores", fail)
        else:
            monkeypatch.setattr(one._gate, "release", fail)
        with pytest.raises(crash):
            one.measure(ask, adapter, model)
    monkeypatch.undo()
    with make() as one:
        assert one.ledger.spent(DELTA) == pytest.approx(COST)
        one.measure(ask, adapter, model)
        assert len(one.ledger.events()) == 2
        kinds = [e.kind for e in one.ledger.entries]
    assert kinds == ["genesis", "reserve", "abandon", "reserve", "release"]


def test_metrics_and_training_draw_on_one_budget(training):
    make, ask, model = training
    measure = MetricsRequest(
        **{k: getattr(ask, k) for k in ("job", "task", "model", "base_digest", "layout_digest")},
        round=0,
        metrics={"noise_multiplier": 8.0, "bins": 10},
    )
    start = model.adapter()
    with make({"metrics": {"scores": 1.0}}) as one:
        one.train(ask, start, model)
        trained = one.ledger.spent(DELTA)
    # Room for the training alone, and for the metrics alone, but not for both.
    budget = {"metrics": {"scores": 1.0}, "epsilon": trained + COST / 100, "delta": DELTA}
    assert trained > COST
    with make(budget, name="first") as one:
        one.train(ask, start, model)
        with pytest.raises(BudgetError):
            one.measure(measure, start, model)
    with make(budget, name="second") as one:
        one.measure(measure, start, model)
        with pytest.raises(BudgetError):
            one.train(ask, start, model)


def test_metrics_of_many_rounds_end_with_the_budget(measuring):
    make, ask, adapter, model = measuring
    with make({"epsilon": 2.5 * COST}) as one:
        for round_ in range(20):
            try:
                one.measure(replace(ask, round=round_), adapter, model)
            except BudgetError:
                break
        events = one.ledger.events()
        assert 2 < len(events) < 20
        assert epsilon_spent(events, delta=DELTA) <= 2.5 * COST
        assert epsilon_spent((*events, events[0]), delta=DELTA) > 2.5 * COST
