"""Metrics leave a silo paid for, noised and within its policy, or not at all."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import client.measure
import client.silo
from client.prepared import PreparedExamples, load_or_prepare
from client.silo import Silo
from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.egress import Outgoing
from privacy.ledger import Ledger
from privacy.policy import Policy
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import BudgetError, ConfigError, EgressError, MessageError, PolicyError
from silotune.federation import build_model, read_federation
from silotune.messages import MetricsRequest
from silotune.tables.silo_folder import SiloFolder

METRICS = {"noise_multiplier": 8.0, "bins": 10, "negative_weight": 0.25}
DELTA = 1e-3
COST = epsilon_spent([GaussianEvent(sampling_rate=1.0, noise_multiplier=8.0, steps=1)], delta=DELTA)
CHANCE = 1e-6


def _policy(**changes):
    fields = {"epsilon": 2.0, "delta": DELTA, "base_digests": ("none",), "servers": ("s",)}
    return Policy(**(fields | {"metrics": {"scores": 0.5}} | changes))


@pytest.fixture(scope="module")
def prepared(small_federation, tmp_path_factory):
    federation = read_federation(small_federation(tmp_path_factory.mktemp("measure"), "numeric"))
    model = build_model(federation.models, "numeric", federation.task)
    folder = SiloFolder.open(Path(federation.silos[0]))
    ask = MetricsRequest(
        job="j",
        round=1,
        task=federation.task.name,
        model="numeric",
        base_digest=model.base_digest,
        layout_digest=model.layout.digest,
        metrics=METRICS,
    )
    return load_or_prepare(folder, federation.task, model), model, ask


@pytest.fixture
def silo(prepared, tmp_path):
    """A function that opens the silo, a request for its metrics, an adapter and the model."""
    data, model, ask = prepared

    def make(policy=None, source=None, *, name="ledger", data=data):
        return Silo(
            "m",
            data,
            nominal_users=40,
            ledger=tmp_path / name / "ledger.db",
            policy=policy or _policy(),
            source=source or SecureSource(),
            server="s",
        )

    return make, ask, torch.linspace(-1, 1, model.layout.size), model


@pytest.fixture
def unscored(monkeypatch):
    """Scoring an example fails the test."""
    monkeypatch.setattr(PreparedExamples, "scores", lambda *_, **__: pytest.fail("scored"))


def test_metrics_leave_through_the_gate_with_a_receipt_of_public_facts(silo):
    make, ask, adapter, model = silo
    with make() as one:
        out = one.measure(ask, adapter, model)
        one.handed_over(out)
        assert one.ledger.events() == (
            GaussianEvent(sampling_rate=1.0, noise_multiplier=8.0, steps=1),
        )
        kinds = [e.kind for e in one.ledger.entries]
    assert isinstance(out, Outgoing)
    assert out.name == "metrics"
    assert out.vector().shape == (20,)
    assert out.vector().dtype == torch.float32
    assert kinds == ["genesis", "reserve", "release", "settle"]
    plan = {"noise_multiplier", "scores", "errors", "outputs", "bins", "negative_weight"}
    plan |= {"examples_per_user", "error_bound"}
    of_the_ledger = {"reservation", "request", "sha256", "bytes"}
    told = {"job", "round", "name", "size", "mechanism", "encoding", "private"}
    assert set(out.receipt) == plan | of_the_ledger | told
    assert out.receipt["private"] is True


def test_nothing_but_the_numbers_themselves_depends_on_the_data(silo):
    make, ask, adapter, model = silo
    seen = []
    with make() as one:
        whole = one._data
    examples = whole.examples
    few = replace(examples, test_E=examples.test_E & (np.cumsum(examples.test_E) <= 5))
    none = replace(examples, test_E=np.zeros_like(examples.test_E))
    for index, test in enumerate((examples, few, none)):
        with make(name=str(index), data=replace(whole, examples=test)) as one:
            out = one.measure(ask, adapter, model)
            assert out.vector().shape == (20,)
            assert out.vector().all()
            entries = [(e.kind, e.body) for e in one.ledger.entries[1:]]
            seen.append(str(entries).replace(out.receipt["sha256"], ""))
    assert seen[0] == seen[1] == seen[2]


def _clean(data, model, adapter, plan):
    """Sums without noise, computed another way: user by user, example by example."""
    model.load_adapter(adapter)
    rows = data.examples.rows(test=True)
    chance = 1 / (1 + np.exp(-data.scores(model, rows)[:, 0].astype(np.float64)))
    total = np.zeros(2 * plan["bins"])
    for user in np.unique(data.examples.user_E[rows]):
        own = np.zeros_like(total)
        for row, score in zip(rows, chance, strict=True):
            if data.examples.user_E[row] == user:
                positive = data.examples.label_EK[row, 0] > 0
                cell = min(int(score * plan["bins"]), plan["bins"] - 1)
                own[cell + plan["bins"] * positive] += 1 if positive else plan["negative_weight"]
        total += own / max(1.0, float(np.linalg.norm(own)))
    return total


@pytest.mark.parametrize(
    ("claimed", "accepted"), [(1.0, True), (0.9, False), (1.1, False), (0.5, False)]
)
def test_what_leaves_is_the_bounded_sums_and_noise_of_the_charged_size(silo, claimed, accepted):
    make, ask, adapter, model = silo
    plan = METRICS | {"bins": 2000, "noise_multiplier": 4.0, "examples_per_user": 64}
    with make(_policy(metrics={"scores": 5.0})) as one:
        out = one.measure(replace(ask, metrics=plan), adapter, model).vector().numpy()
        (event,) = one.ledger.events()
        clean = _clean(one._data, model, adapter, plan)
    noise = (out - clean) / (claimed * event.noise_multiplier)
    tail = stats.chi2.cdf((noise**2).sum(), out.size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted
    assert clean.sum() > 5


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
    silo, policy, asked, limits, unscored
):
    make, ask, adapter, model = silo
    with make(_policy(**policy)) as one:
        with pytest.raises(PolicyError) as caught:
            one.measure(replace(ask, metrics=METRICS | asked), adapter, model)
        assert set(caught.value.limits) == limits
        assert all(limit in str(caught.value) for limit in limits)
        assert [e.kind for e in one.ledger.entries] == ["genesis"]


def test_metrics_at_exactly_their_epsilon_are_within_the_policy(silo):
    make, ask, adapter, model = silo
    with make(_policy(metrics={"scores": COST})) as one:
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
def test_impossible_plans_are_refused_before_anything_is_charged(silo, change, unscored):
    make, ask, adapter, model = silo
    with make() as one:
        with pytest.raises(ConfigError):
            one.measure(replace(ask, metrics=METRICS | change), adapter, model)
        assert one.ledger.events() == ()


def test_another_base_layout_or_adapter_is_refused(silo, unscored):
    make, ask, adapter, model = silo
    with make() as one:
        for request in (replace(ask, base_digest="x"), replace(ask, layout_digest="x")):
            with pytest.raises(MessageError):
                one.measure(request, adapter, model)
        for wrong in (torch.zeros(3), adapter + float("nan")):
            with pytest.raises(MessageError):
                one.measure(ask, wrong, model)
        assert one.ledger.events() == ()


def test_seeded_noise_is_refused_where_the_policy_does_not_allow_it(silo, unscored):
    make, ask, adapter, model = silo
    with make(source=SeededSource(1)) as one, pytest.raises(PolicyError, match="seeded"):
        one.measure(ask, adapter, model)


def test_seeded_metrics_are_marked_as_not_private(silo):
    make, ask, adapter, model = silo
    with make(_policy(seeded_noise=True), SeededSource(1)) as one:
        assert one.measure(ask, adapter, model).receipt["private"] is False


def test_the_charge_is_on_disk_before_the_first_example_is_scored(silo, tmp_path, monkeypatch):
    make, ask, adapter, model = silo
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


def test_a_repeated_request_gets_the_same_bytes_and_scores_nothing(silo, monkeypatch):
    make, ask, adapter, model = silo
    with make() as one:
        first = one.measure(ask, adapter, model).vector()
    monkeypatch.setattr(PreparedExamples, "scores", lambda *_, **__: pytest.fail("scored"))
    with make() as one:
        assert torch.equal(one.measure(ask, adapter, model).vector(), first)
        assert len(one.ledger.events()) == 1
        # One number another: a new request, charged anew.
        monkeypatch.undo()
        for other, vector in (
            (replace(ask, round=2), adapter),
            (replace(ask, metrics=METRICS | {"negative_weight": 0.5}), adapter),
            (ask, adapter + 1e-3),
        ):
            assert not torch.equal(one.measure(other, vector, model).vector(), first)
        assert len(one.ledger.events()) == 4


@pytest.mark.parametrize("crash", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["scores", "release"])
def test_a_crash_between_charge_and_release_leaves_it_spent(silo, monkeypatch, crash, where):
    make, ask, adapter, model = silo

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


def test_metrics_and_training_draw_on_one_budget(silo):
    make, ask, adapter, model = silo
    with make(_policy(epsilon=2.5 * COST)) as one:
        for round_ in range(20):
            try:
                one.measure(replace(ask, round=round_), adapter, model)
            except BudgetError:
                break
        events = one.ledger.events()
        assert 2 < len(events) < 20
        assert epsilon_spent(events, delta=DELTA) <= 2.5 * COST
        assert epsilon_spent((*events, events[0]), delta=DELTA) > 2.5 * COST


@pytest.mark.parametrize(
    "wrong", [torch.full((20,), float("nan")), torch.zeros(19), torch.full((20,), 1e6)]
)
def test_a_release_that_is_not_what_was_declared_stays_and_its_cost_is_spent(
    silo, monkeypatch, wrong
):
    make, ask, adapter, model = silo
    monkeypatch.setattr(client.measure, "measured", lambda *_: wrong)
    with make() as one:
        with pytest.raises(EgressError):
            one.measure(ask, adapter, model)
        assert len(one.ledger.events()) == 1


def test_a_diverged_adapter_releases_noise_alone(silo):
    make, ask, adapter, model = silo
    with make() as one:
        out = one.measure(ask, torch.full_like(adapter, 3e38), model).vector()
    assert torch.isfinite(out).all()


def test_a_reply_leaves_at_a_multiple_of_the_interval(silo, monkeypatch):
    make, ask, adapter, model = silo
    slept, times = [], iter((100.0, 107.3))
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: next(times))
    with make(_policy(reply_interval=5.0)) as one:
        monkeypatch.setattr(client.silo, "time", clock)
        monkeypatch.setattr(one, "_measure", lambda *_: None)
        one.measure(ask, adapter, model)
    assert slept == [pytest.approx(2.7)]
