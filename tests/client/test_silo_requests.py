"""A request to train is charged before it is answered, answered once, or refused whole."""

from dataclasses import replace

import pytest
import torch

import client.silo
from privacy.accounting import epsilon_spent
from privacy.randomness import SeededSource
from silotune.errors import (
    BudgetError,
    ConfigError,
    LedgerError,
    MessageError,
    PolicyError,
    PrivacyError,
)


def test_the_budget_is_spent_and_then_refused_with_the_figures(training):
    make, ask, model = training
    start = model.adapter()
    with make() as one:
        one.train(ask, start, model)

        def spend():
            for round_ in range(1, 50):
                one.train(replace(ask, round=round_), start, model)

        with pytest.raises(BudgetError, match=r"spent ε = \d\.\d+ of 6"):
            spend()
        assert epsilon_spent(one.ledger.events(), delta=1e-3) <= 6.0
        assert len(one.ledger.events()) > 1
    # Another job, and a daemon that was started again, meet the same account.
    with make() as again, pytest.raises(BudgetError):
        again.train(replace(ask, job="other"), start, model)


@pytest.mark.parametrize("crash", [ZeroDivisionError, KeyboardInterrupt])
def test_a_crash_in_training_leaves_the_charge_and_no_second_use_of_it(
    training, monkeypatch, crash
):
    make, ask, model = training

    def fail(*_, **__):
        raise crash

    start = model.adapter()
    with make() as one:
        monkeypatch.setattr(client.silo, "train_private", fail)
        with pytest.raises(crash):
            one.train(ask, start, model)
        assert len(one.ledger.events()) == 1
    monkeypatch.undo()
    with make() as one:
        # The same request may be tried again, and is charged again.
        one.train(ask, start, model)
        assert len(one.ledger.events()) == 2
        kinds = [e.kind for e in one.ledger.entries]
    assert kinds == ["genesis", "reserve", "abandon", "reserve", "release"]


def test_no_training_starts_before_the_charge_is_durable(training, monkeypatch):
    make, ask, model = training
    seen = []
    with make() as one:
        monkeypatch.setattr(
            client.silo, "train_private", lambda *_, **__: seen.append(len(one.ledger.events()))
        )
        one.train(ask, model.adapter(), model)
    assert seen == [1]


def test_a_repeated_request_gets_the_stored_release_and_trains_nothing(training, monkeypatch):
    make, ask, model = training
    start = model.adapter()
    with make() as one:
        first = one.train(ask, start, model).vector()
    monkeypatch.setattr(client.silo, "train_private", lambda *_, **__: pytest.fail("trained"))
    with make() as one:
        assert torch.equal(one.train(ask, start, model).vector(), first)
        assert len(one.ledger.events()) == 1
        # Another job: a new request, charged anew.
        monkeypatch.undo()
        assert not torch.equal(one.train(replace(ask, job="b"), start, model).vector(), first)
        assert len(one.ledger.events()) == 2


def test_a_job_goes_forward_only(training):
    make, ask, model = training
    start = model.adapter()
    with make() as one:
        one.train(replace(ask, round=1), start, model)
        for other, adapter in (
            (replace(ask, round=1, private=ask.private | {"learning_rate": 0.25}), start),
            (replace(ask, round=1), start + 1e-3),
            (replace(ask, round=0), start),
        ):
            with pytest.raises(PolicyError, match="comes after 1") as caught:
                one.train(other, adapter, model)
            assert caught.value.limits == ("round",)
        assert len(one.ledger.events()) == 1


def test_a_stored_release_that_was_changed_stays_in_the_silo(training, tmp_path):
    make, ask, model = training
    start = model.adapter()
    with make() as one:
        one.train(ask, start, model)
    (payload,) = (tmp_path / "ledger-releases").iterdir()
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    with make() as one, pytest.raises(LedgerError, match="is not what was released"):
        one.train(ask, start, model)


@pytest.mark.parametrize(
    ("policy", "asked", "limits"),
    [
        ({"noise_multiplier_min": 2.0}, {}, {"noise_multiplier"}),
        ({"clip_norm_max": 1.0}, {}, {"clip_norm"}),
        ({"sampling_rate_max": 0.4}, {}, {"sampling_rate"}),
        ({"steps_max": 1}, {}, {"steps"}),
        ({"examples_per_user_max": 7}, {}, {"examples_per_user"}),
        ({"tasks": ("churn",)}, {}, {"task"}),
        ({"base_digests": ()}, {}, {"base_digest"}),
        ({"servers": ("other",)}, {}, {"server"}),
        ({"delta": 0.1}, {}, {"delta"}),
        ({"mechanisms": ("discrete-gaussian",)}, {}, {"mechanism"}),
        ({"clip_norm_max": 1.0, "steps_max": 1}, {}, {"clip_norm", "steps"}),
    ],
)
def test_a_request_outside_the_policy_is_refused_whole_with_every_reason(
    training, policy, asked, limits
):
    make, ask, model = training
    with make(policy) as one:
        with pytest.raises(PolicyError) as caught:
            one.train(replace(ask, private=ask.private | asked), model.adapter(), model)
        assert set(caught.value.limits) == limits
        assert all(limit in str(caught.value) for limit in limits)
        assert one.ledger.events() == ()


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"clip_norm": -1.0},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"examples_per_user": 0},
        {"surprise": 1.0},
        {"noise_multiplier": float("nan")},
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_charged(training, change):
    make, ask, model = training
    with make() as one:
        with pytest.raises(ConfigError):
            one.train(replace(ask, private=ask.private | change), model.adapter(), model)
        assert one.ledger.events() == ()


def test_another_base_layout_or_length_is_refused(training):
    make, ask, model = training
    start = model.adapter()
    with make() as one:
        for request in (replace(ask, base_digest="x"), replace(ask, layout_digest="x")):
            with pytest.raises(MessageError):
                one.train(request, start, model)
        for adapter in (torch.zeros(3), start + float("nan")):
            with pytest.raises(MessageError):
                one.train(ask, adapter, model)
        assert one.ledger.events() == ()


def test_seeded_noise_is_refused_where_the_policy_does_not_allow_it(training):
    make, ask, model = training
    with make(source=SeededSource(1)) as one, pytest.raises(PolicyError, match="seeded"):
        one.train(ask, model.adapter(), model)


def test_an_unknown_mechanism_is_refused(training):
    make, ask, model = training
    with make() as one, pytest.raises(ConfigError, match="mechanism"):
        one.train(
            replace(ask, private=ask.private | {"mechanism": "laplace"}), model.adapter(), model
        )


def test_a_model_that_fails_its_self_test_costs_nothing(training, monkeypatch):
    make, ask, model = training

    def fail(*_):
        raise PrivacyError("gradients differ")

    monkeypatch.setattr(client.silo, "check_once", fail)
    with make() as one:
        with pytest.raises(PrivacyError, match="gradients differ"):
            one.train(ask, model.adapter(), model)
        assert one.ledger.events() == ()
