from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import client.silo
from client.prepared import load_or_prepare
from client.silo import Silo
from client.trainer import train_private
from privacy.accounting import epsilon_spent
from privacy.discrete import discrete_plan
from privacy.dp_sgd import DPConfig
from privacy.egress import Outgoing
from privacy.policy import Policy
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import (
    BudgetError,
    ConfigError,
    EgressError,
    LedgerError,
    MessageError,
    PolicyError,
    PrivacyError,
)
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
PLAIN = {"learning_rate": 0.1, "optimizer": "sgd", "batch_size": 16, "epochs": 1.0}


def _policy(**changes):
    fields = {"epsilon": 6.0, "delta": 1e-3, "base_digests": ("none",), "servers": ("s",)}
    return Policy(**(fields | changes))


@pytest.fixture
def silo(small_federation, tmp_path):
    """A function that opens the silo, a request for it, and the model."""
    federation = read_federation(small_federation(tmp_path, "numeric"))
    model = build_model(federation.models, "numeric", federation.task)
    folder = SiloFolder.open(Path(federation.silos[0]))
    data = load_or_prepare(folder, federation.task, model)

    def make(policy=None, source=None, *, nominal_users=40, server="s", name="ledger"):
        return Silo(
            "m",
            data,
            nominal_users=nominal_users,
            ledger=tmp_path / f"{name}.db",
            policy=policy or _policy(),
            source=source or SecureSource(),
            server=server,
        )

    ask = TrainRequest(
        job="j",
        round=0,
        task=federation.task.name,
        model="numeric",
        base_digest=model.base_digest,
        layout_digest=model.layout.digest,
        private=PRIVATE,
    )
    return make, ask, model


def test_the_budget_is_spent_and_then_refused_with_the_figures(silo):
    make, ask, model = silo
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
def test_a_crash_in_training_leaves_the_charge_and_no_second_use_of_it(silo, monkeypatch, crash):
    make, ask, model = silo

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


def test_no_training_starts_before_the_charge_is_durable(silo, monkeypatch):
    make, ask, model = silo
    seen = []
    with make() as one:
        monkeypatch.setattr(
            client.silo, "train_private", lambda *_, **__: seen.append(len(one.ledger.events()))
        )
        one.train(ask, model.adapter(), model)
    assert seen == [1]


def test_a_repeated_request_gets_the_stored_release_and_trains_nothing(silo, monkeypatch):
    make, ask, model = silo
    start = model.adapter()
    with make() as one:
        first = one.train(ask, start, model).vector()
    monkeypatch.setattr(client.silo, "train_private", lambda *_, **__: pytest.fail("trained"))
    with make() as one:
        assert torch.equal(one.train(ask, start, model).vector(), first)
        assert len(one.ledger.events()) == 1
        # One number of the request or the adapter another: a new request, charged anew.
        monkeypatch.undo()
        for other, adapter in (
            (replace(ask, private=PRIVATE | {"learning_rate": 0.25}), start),
            (ask, start + 1e-3),
        ):
            assert not torch.equal(one.train(other, adapter, model).vector(), first)
        assert len(one.ledger.events()) == 3


def test_a_stored_release_that_was_changed_stays_in_the_silo(silo, tmp_path):
    make, ask, model = silo
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
    silo, policy, asked, limits
):
    make, ask, model = silo
    with make(_policy(**policy)) as one:
        with pytest.raises(PolicyError) as caught:
            one.train(replace(ask, private=PRIVATE | asked), model.adapter(), model)
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
def test_impossible_parameters_are_refused_before_anything_is_charged(silo, change):
    make, ask, model = silo
    with make() as one:
        with pytest.raises(ConfigError):
            one.train(replace(ask, private=PRIVATE | change), model.adapter(), model)
        assert one.ledger.events() == ()


def test_plain_training_needs_the_policy_and_its_receipt_says_so(silo):
    make, ask, model = silo
    request = replace(ask, private=None, plain=PLAIN)
    start = model.adapter()
    with make() as one, pytest.raises(PolicyError, match="without privacy"):
        one.train(request, start, model)
    with make(_policy(plain_training=True)) as one:
        out = one.train(request, start, model)
        assert out.vector().abs().sum() > 0
        assert one.ledger.entries[-1].body["private"] is False


def test_another_base_layout_or_length_is_refused(silo):
    make, ask, model = silo
    start = model.adapter()
    with make() as one:
        for request in (replace(ask, base_digest="x"), replace(ask, layout_digest="x")):
            with pytest.raises(MessageError):
                one.train(request, start, model)
        for adapter in (torch.zeros(3), start + float("nan")):
            with pytest.raises(MessageError):
                one.train(ask, adapter, model)
        assert one.ledger.events() == ()


def test_two_private_updates_differ_and_seeded_ones_do_not(silo):
    make, ask, model = silo
    start = model.adapter()

    def twice(source, name):
        vectors = []
        for index in range(2):
            with make(_policy(seeded_noise=True), source(), name=f"{name}{index}") as one:
                out = one.train(ask, start, model)
                assert out.receipt["private"] is (source is SecureSource)
                vectors.append(out.vector())
        return torch.equal(*vectors)

    assert not twice(SecureSource, "a")
    assert twice(lambda: SeededSource(1), "b")


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_update_in_fewer_bits_is_the_same_up_to_rounding(silo, encoding):
    make, ask, model = silo
    start = model.adapter()
    found = {}
    for how in ("float32", encoding):
        with make(_policy(seeded_noise=True), SeededSource(1), name=how) as one:
            found[how] = one.train(replace(ask, encoding=how), start, model)
    exact, rounded = found["float32"].vector(), found[encoding].vector()
    step = exact.abs().max() / (127 if encoding == "int8" else 128)
    assert 0 < (rounded - exact).abs().max() <= step
    assert len(found[encoding].array()) < len(exact) * 4 / 1.9


def test_the_release_is_what_private_training_made_of_the_adapter_and_no_more(silo):
    make, ask, model = silo
    start = torch.full((model.layout.size,), 0.25)
    with make(_policy(seeded_noise=True), SeededSource(7)) as one:
        out = one.train(ask, start, model).vector()
        model.load_adapter(start)
        settings = {k: v for k, v in PRIVATE.items() if k not in ("steps", "learning_rate")}
        train_private(
            model,
            one._data,
            DPConfig(**settings),
            steps=2,
            learning_rate=0.5,
            nominal_users=40,
            source=SeededSource(7),
        )
    assert torch.equal(out, model.adapter() - start)


def test_seeded_noise_is_refused_where_the_policy_does_not_allow_it(silo):
    make, ask, model = silo
    with make(source=SeededSource(1)) as one, pytest.raises(PolicyError, match="seeded"):
        one.train(ask, model.adapter(), model)


def test_an_update_above_the_norm_limit_stays_and_its_cost_is_spent(silo):
    make, ask, model = silo
    with make(_policy(update_norm_max=1e-6)) as one:
        with pytest.raises(EgressError, match="norm"):
            one.train(ask, model.adapter(), model)
        assert len(one.ledger.events()) == 1


def test_a_diverged_update_leaves_as_zeros(silo, monkeypatch):
    make, ask, model = silo

    def diverge(model, *_, **__):
        model.load_adapter(torch.full((model.layout.size,), 3e38))

    monkeypatch.setattr(client.silo, "train_private", diverge)
    with make() as one:
        # The difference of two finite adapters may be too large for float32.
        out = one.train(ask, torch.full((model.layout.size,), -3e38), model)
    assert isinstance(out, Outgoing)
    assert out.vector().abs().sum() == 0


def test_a_reply_leaves_at_a_multiple_of_the_interval(silo, monkeypatch):
    make, ask, model = silo
    slept, times = [], iter((100.0, 107.3))
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: next(times))
    with make(_policy(reply_interval=5.0)) as one:
        monkeypatch.setattr(client.silo, "time", clock)
        monkeypatch.setattr(one, "_train_private", lambda *_: None)
        one.train(ask, model.adapter(), model)
    assert slept == [pytest.approx(2.7)]


def test_the_hardened_mechanism_trains_is_on_its_grid_and_says_so(silo):
    make, ask, model = silo
    start = model.adapter()
    settings = PRIVATE | {"mechanism": "discrete-gaussian", "steps": 1, "learning_rate": 1.0}
    # Powers of two throughout: the update is then a whole number of grid steps.
    settings |= {"sampling_rate": 0.5}
    with make(nominal_users=32) as one:
        out = one.train(replace(ask, private=settings), torch.zeros_like(start), model)
        assert one.ledger.entries[-1].body["mechanism"] == "discrete-gaussian"
        assert len(one.ledger.events()) == 1
    plan = discrete_plan(len(start), clip_norm=2.0, noise_multiplier=1.5)
    steps = out.vector().double() * 16 / plan.step
    # float32 keeps 24 bits; coarser numbers are rounded to fewer of them.
    exact = steps.abs() < 2**24
    assert exact.any()
    assert torch.equal(steps[exact], steps[exact].round())
    assert out.vector().abs().sum() > 0


def test_an_unknown_mechanism_is_refused(silo):
    make, ask, model = silo
    with make() as one, pytest.raises(ConfigError, match="mechanism"):
        one.train(replace(ask, private=PRIVATE | {"mechanism": "laplace"}), model.adapter(), model)


def test_a_model_that_fails_its_self_test_costs_nothing(silo, monkeypatch):
    make, ask, model = silo

    def fail(*_):
        raise PrivacyError("gradients differ")

    monkeypatch.setattr(client.silo, "check_once", fail)
    with make() as one:
        with pytest.raises(PrivacyError, match="gradients differ"):
            one.train(ask, model.adapter(), model)
        assert one.ledger.events() == ()
