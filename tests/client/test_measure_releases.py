"""Metrics leave a silo noised, bounded and by the gate, or not at all."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import client.measure
import client.silo
from privacy.accounting import GaussianEvent
from privacy.egress import Outgoing
from privacy.randomness import SeededSource
from silotune.errors import EgressError

CHANCE = 1e-6


def test_metrics_leave_through_the_gate_with_a_receipt_of_public_facts(measuring):
    make, ask, adapter, model = measuring
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


def test_nothing_but_the_numbers_themselves_depends_on_the_data(measuring):
    make, ask, adapter, model = measuring
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
def test_what_leaves_is_the_bounded_sums_and_noise_of_the_charged_size(
    measuring, claimed, accepted
):
    make, ask, adapter, model = measuring
    plan = ask.metrics | {"bins": 2000, "noise_multiplier": 4.0, "examples_per_user": 64}
    with make({"metrics": {"scores": 5.0}}) as one:
        out = one.measure(replace(ask, metrics=plan), adapter, model).vector().numpy()
        (event,) = one.ledger.events()
        clean = _clean(one._data, model, adapter, plan)
    noise = (out - clean) / (claimed * event.noise_multiplier)
    tail = stats.chi2.cdf((noise**2).sum(), out.size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted
    assert clean.sum() > 5


def test_seeded_metrics_are_marked_as_not_private(measuring):
    make, ask, adapter, model = measuring
    with make({"seeded_noise": True}, SeededSource(1)) as one:
        assert one.measure(ask, adapter, model).receipt["private"] is False


@pytest.mark.parametrize(
    "wrong", [torch.full((20,), float("nan")), torch.zeros(19), torch.full((20,), 1e6)]
)
def test_a_release_that_is_not_what_was_declared_stays_and_its_cost_is_spent(
    measuring, monkeypatch, wrong
):
    make, ask, adapter, model = measuring
    monkeypatch.setattr(client.measure, "measured", lambda *_: wrong)
    with make() as one:
        with pytest.raises(EgressError):
            one.measure(ask, adapter, model)
        assert len(one.ledger.events()) == 1


def test_a_diverged_adapter_releases_noise_alone(measuring):
    make, ask, adapter, model = measuring
    with make() as one:
        out = one.measure(ask, torch.full_like(adapter, 3e38), model).vector()
    assert torch.isfinite(out).all()


def test_a_reply_leaves_at_a_multiple_of_the_interval(measuring, monkeypatch):
    make, ask, adapter, model = measuring
    slept, times = [], iter((100.0, 107.3))
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: next(times))
    with make({"reply_interval": 5.0}) as one:
        monkeypatch.setattr(client.silo, "time", clock)
        monkeypatch.setattr(one, "_measure", lambda *_: None)
        one.measure(ask, adapter, model)
    assert slept == [pytest.approx(2.7)]
