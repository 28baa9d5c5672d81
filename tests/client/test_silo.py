from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.prepared import load_or_prepare
from client.silo import Budget, Silo
from privacy.accounting import epsilon_spent
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import ConfigError, MessageError, PrivacyError
from silotune.federation import build_model, read_federation
from silotune.messages import TrainRequest
from silotune.tables.silo_folder import SiloFolder

PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.5,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}


@pytest.fixture
def silo(small_federation, tmp_path):
    federation = read_federation(small_federation(tmp_path, "numeric"))
    model = build_model(federation.models, "numeric", federation.task)
    folder = SiloFolder.open(Path(federation.silos[0]))
    data = load_or_prepare(folder, federation.task, model)

    def make(budget, source=None):
        return Silo(
            "m",
            data,
            nominal_users=40,
            ledger=tmp_path / "ledger.db",
            budget=budget,
            source=source or SecureSource(),
        )

    ask = TrainRequest(
        job="j",
        round=0,
        model="numeric",
        base_digest=model.base_digest,
        layout_digest=model.layout.digest,
        private=PRIVATE,
    )
    return make, ask, model


def test_the_budget_is_spent_and_then_refused_with_the_figures(silo):
    make, ask, model = silo
    one = make(Budget(epsilon=6.0, delta=1e-3))
    start = model.adapter()
    one.train(ask, start, model)

    def spend():
        for round_ in range(1, 50):
            one.train(replace(ask, round=round_), start, model)

    with pytest.raises(PrivacyError, match=r"spent ε = \d\.\d+ of 6"):
        spend()
    assert epsilon_spent(one.ledger.events(), delta=1e-3) <= 6.0
    # Another job, and a daemon that was started again, meet the same account.
    with pytest.raises(PrivacyError):
        make(Budget(epsilon=6.0, delta=1e-3)).train(replace(ask, job="other"), start, model)


def test_a_crash_in_training_leaves_the_charge(silo, monkeypatch):
    make, ask, model = silo
    one = make(Budget(epsilon=6.0, delta=1e-3))
    monkeypatch.setattr("client.silo.train_private", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.train(ask, model.adapter(), model)
    assert len(one.ledger.events()) == 1


def test_no_training_starts_before_the_charge_is_durable(silo, monkeypatch):
    make, ask, model = silo
    one = make(Budget(epsilon=6.0, delta=1e-3))
    seen = []
    monkeypatch.setattr(
        "client.silo.train_private", lambda *_, **__: seen.append(len(one.ledger.events()))
    )
    one.train(ask, model.adapter(), model)
    assert seen == [1]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(epsilon=None, delta=1e-3), "no private training"),
        (Budget(epsilon=8.0, delta=0.1), "below 1/users"),
    ],
)
def test_a_policy_that_forbids_is_obeyed(silo, budget, words):
    make, ask, model = silo
    one = make(budget)
    with pytest.raises(PrivacyError, match=words):
        one.train(ask, model.adapter(), model)
    assert one.ledger.events() == ()


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"clip_norm": -1.0},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"examples_per_user": 0},
        {"surprise": 1.0},
        {"noise_multiplier": float("nan")},
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_charged(silo, change):
    make, ask, model = silo
    one = make(Budget(epsilon=8.0, delta=1e-3))
    with pytest.raises(ConfigError):
        one.train(replace(ask, private=PRIVATE | change), model.adapter(), model)
    assert one.ledger.events() == ()


def test_plain_training_needs_the_policy(silo):
    make, ask, model = silo
    plain = {"learning_rate": 0.1, "optimizer": "sgd", "batch_size": 16, "epochs": 1.0}
    request = replace(ask, private=None, plain=plain)
    start = model.adapter()
    with pytest.raises(PrivacyError, match="without privacy"):
        make(Budget(epsilon=8.0, delta=1e-3)).train(request, start, model)
    update = make(Budget(epsilon=None, delta=1e-3, allow_plain=True)).train(request, start, model)
    assert update.abs().sum() > 0


def test_another_base_layout_or_length_is_refused(silo):
    make, ask, model = silo
    one = make(Budget(epsilon=8.0, delta=1e-3))
    start = model.adapter()
    for request in (replace(ask, base_digest="x"), replace(ask, layout_digest="x")):
        with pytest.raises(MessageError):
            one.train(request, start, model)
    with pytest.raises(MessageError):
        one.train(ask, torch.zeros(3), model)
    assert one.ledger.events() == ()


def test_two_private_updates_differ_and_seeded_ones_do_not(silo):
    make, ask, model = silo
    start = model.adapter()
    wide = Budget(epsilon=100.0, delta=1e-3)
    first, second = (make(wide).train(ask, start, model) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (make(wide, SeededSource(1)).train(ask, start, model) for _ in range(2))
    assert torch.equal(first, second)
