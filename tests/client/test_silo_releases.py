"""An update leaves a silo as private training made it, within its limits, or not at all."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import client.silo
from client.trainer import train_private
from privacy.discrete import discrete_plan
from privacy.dp_sgd import DPConfig
from privacy.egress import Outgoing
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import EgressError, PolicyError

PLAIN = {"learning_rate": 0.1, "optimizer": "sgd", "batch_size": 16, "epochs": 1.0}


def test_plain_training_needs_the_policy_and_its_receipt_says_so(training):
    make, ask, model = training
    request = replace(ask, private=None, plain=PLAIN)
    start = model.adapter()
    with make() as one, pytest.raises(PolicyError, match="without privacy"):
        one.train(request, start, model)
    with make({"plain_training": True}) as one:
        out = one.train(request, start, model)
        assert out.vector().abs().sum() > 0
        assert one.ledger.entries[-1].body["private"] is False


def test_two_private_updates_differ_and_seeded_ones_do_not(training):
    make, ask, model = training
    start = model.adapter()

    def twice(source, name):
        vectors = []
        for index in range(2):
            with make({"seeded_noise": True}, source(), name=f"{name}{index}") as one:
                out = one.train(ask, start, model)
                assert out.receipt["private"] is (source is SecureSource)
                vectors.append(out.vector())
        return torch.equal(*vectors)

    assert not twice(SecureSource, "a")
    assert twice(lambda: SeededSource(1), "b")


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_update_in_fewer_bits_is_the_same_up_to_rounding(training, encoding):
    make, ask, model = training
    start = model.adapter()
    found = {}
    for how in ("float32", encoding):
        with make({"seeded_noise": True}, SeededSource(1), name=how) as one:
            found[how] = one.train(replace(ask, encoding=how), start, model)
    exact, rounded = found["float32"].vector(), found[encoding].vector()
    step = exact.abs().max() / (127 if encoding == "int8" else 128)
    assert 0 < (rounded - exact).abs().max() <= step
    assert len(found[encoding].array()) < len(exact) * 4 / 1.9


def test_the_release_is_what_private_training_made_of_the_adapter_and_no_more(training):
    make, ask, model = training
    start = torch.full((model.layout.size,), 0.25)
    with make({"seeded_noise": True}, SeededSource(7)) as one:
        out = one.train(ask, start, model).vector()
        model.load_adapter(start)
        settings = {k: v for k, v in ask.private.items() if k not in ("steps", "learning_rate")}
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


def test_an_update_above_the_norm_limit_stays_and_its_cost_is_spent(training):
    make, ask, model = training
    with make({"update_norm_max": 1e-6}) as one:
        with pytest.raises(EgressError, match="norm"):
            one.train(ask, model.adapter(), model)
        assert len(one.ledger.events()) == 1


def test_a_diverged_update_leaves_as_zeros(training, monkeypatch):
    make, ask, model = training

    def diverge(model, *_, **__):
        model.load_adapter(torch.full((model.layout.size,), 3e38))

    monkeypatch.setattr(client.silo, "train_private", diverge)
    with make() as one:
        # The difference of two finite adapters may be too large for float32.
        out = one.train(ask, torch.full((model.layout.size,), -3e38), model)
    assert isinstance(out, Outgoing)
    assert out.vector().abs().sum() == 0


def test_a_reply_leaves_at_a_multiple_of_the_interval(training, monkeypatch):
    make, ask, model = training
    slept, times = [], iter((100.0, 107.3))
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: next(times))
    with make({"reply_interval": 5.0}) as one:
        monkeypatch.setattr(client.silo, "time", clock)
        monkeypatch.setattr(one, "_train_private", lambda *_: None)
        one.train(ask, model.adapter(), model)
    assert slept == [pytest.approx(2.7)]


def test_the_hardened_mechanism_trains_is_on_its_grid_and_says_so(training):
    make, ask, model = training
    start = model.adapter()
    settings = ask.private | {"mechanism": "discrete-gaussian", "steps": 1, "learning_rate": 1.0}
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
