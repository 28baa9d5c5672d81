"""Broken layers and hooks against the self-test, and one user's worst case on the real path."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import client.self_check
import privacy.gradients
from client.self_check import check_once
from privacy.gradient_check import check_gradients, check_moved
from privacy.gradients import UserGradients
from privacy.randomness import SeededSource
from silotune.errors import PrivacyError
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.objective import Binary, Bounded, Classes

KINDS = {
    "encoder": {"family": "Bert"},
    "decoder": {"family": "Llama"},
    "top layer": {"family": "Bert", "top_layers": 1},
    "two outputs": {"family": "Llama", "outputs": 2},
    "frozen A": {"family": "Bert", "train_a": False},
    "bfloat16": {"family": "Llama", "precision": "bfloat16"},
    "bfloat16 encoder": {"family": "Bert", "precision": "bfloat16"},
}


def check(model, objective=None):
    outputs = model.head.score.out_features
    several = Classes(names=tuple("abc"[:outputs])) if outputs > 1 else Binary()
    gradients = UserGradients(model)
    try:
        check_once(model, gradients, objective or several)
    finally:
        gradients.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_passes_and_keeps_its_adapter(small, kind):
    model = small.tiny(**KINDS[kind])
    before, state = model.adapter(), torch.random.get_rng_state()
    check(model)
    assert torch.equal(model.adapter(), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_of_numbers_alone_passes():
    check(TextModel(ModelConfig(use_text=False), numeric_size=4, outputs=1))


def test_a_model_of_bounded_values_passes(small):
    check(small.tiny("Bert"), Bounded())


def test_an_adapter_at_its_start_is_tested_all_the_same(small, monkeypatch):
    # B and head are zero: without the shift every LoRA gradient would be, right or wrong.
    model = small.tiny("Bert")
    model.load_adapter(torch.zeros(model.layout.size))
    check(model)
    break_product(monkeypatch, lambda rows: 2 * rows)
    with pytest.raises(PrivacyError, match="self-test"):
        check(small.tiny("Bert"))


def break_product(monkeypatch, change):
    right = privacy.gradients._outer
    monkeypatch.setattr(privacy.gradients, "_outer", lambda out, inp: change(right(out, inp)))


def counted_twice(monkeypatch):
    right = UserGradients.add

    def add(self, name, rows):
        right(self, name, rows)
        right(self, name, rows)

    monkeypatch.setattr(UserGradients, "add", add)


def missing_token(monkeypatch):
    right = privacy.gradients._outer

    def outer(out, inp):
        return right(out[:, 1:], inp[:, 1:]) if out.dim() == 3 else right(out, inp)

    monkeypatch.setattr(privacy.gradients, "_outer", outer)


def mixed_users(monkeypatch):
    break_product(monkeypatch, lambda rows: rows.roll(1, 0))


def transposed(monkeypatch):
    break_product(monkeypatch, lambda rows: rows.transpose(1, 2).reshape(rows.shape))


def one_layer_silent(monkeypatch):
    right = UserGradients.add
    name = "backbone.base_model.model.encoder.layer.0.attention.self.query.lora_A.default.weight"

    def add(self, key, rows):
        right(self, key, rows * (key != name))

    monkeypatch.setattr(UserGradients, "add", add)


def bias_forgotten(monkeypatch):
    right = UserGradients.add

    def add(self, key, rows):
        right(self, key, rows * (not key.endswith("bias")))

    monkeypatch.setattr(UserGradients, "add", add)


def unlike_a_number(monkeypatch):
    break_product(monkeypatch, lambda rows: rows * float("nan"))


def one_percent(monkeypatch):
    break_product(monkeypatch, lambda rows: rows * 1.01)


BROKEN = [
    counted_twice,
    missing_token,
    mixed_users,
    transposed,
    one_layer_silent,
    bias_forgotten,
    unlike_a_number,
]


@pytest.mark.parametrize("broken", [*BROKEN, one_percent])
def test_broken_collection_is_noticed_before_a_step(small, broken, monkeypatch):
    model = small.tiny("Bert")
    before = model.adapter()
    broken(monkeypatch)
    with pytest.raises(PrivacyError, match="self-test") as error:
        small.private(model)
    assert torch.equal(model.adapter(), before)
    assert "forward" not in vars(model.head.score)
    # Only a parameter's public name between fixed words.
    assert not any(c.isdigit() for c in str(error.value).split("'")[2])


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_collection_is_noticed_in_bfloat16_too(small, broken, monkeypatch):
    broken(monkeypatch)
    with pytest.raises(PrivacyError, match="self-test"):
        small.private(small.tiny("Bert", "bfloat16"))


def test_dropout_is_refused(small):
    model = small.tiny("Bert")
    model.train()
    with pytest.raises(PrivacyError, match="Switch dropout"):
        small.private(model)


def test_a_model_that_passed_is_checked_once_and_again_after_a_change_of_mode(small, monkeypatch):
    calls = []
    monkeypatch.setattr(client.self_check, "check_gradients", lambda *_, **__: calls.append(1))
    model = small.tiny("Bert")
    for _ in range(3):
        check(model)
    assert len(calls) == 1
    model.train()
    check(model)
    check(small.tiny("Bert"))
    assert len(calls) == 3


def test_the_self_test_takes_nothing_from_the_silo(small, monkeypatch):
    """Whether it passes must not depend on the data: not even on how many there are."""
    seen = []
    right = client.self_check._made_up

    def made_up(*args):
        seen.append(right(*args))
        return seen[-1]

    monkeypatch.setattr(client.self_check, "_made_up", made_up)
    source = SeededSource(0)
    small.private(small.tiny("Bert"), small.data, source)
    tokens, numeric, label, user = small.crowd(users=9, seed=1)
    small.private(
        small.tiny("Bert"), small.examples_of(tokens, numeric * np.nan, label, user), source
    )
    assert all(torch.equal(seen[0].ids_ET, s.ids_ET) for s in seen)
    assert all(torch.equal(seen[0].numeric_EF, s.numeric_EF) for s in seen)


class Small(nn.Module):
    """A layer used in a way that the collector may or may not see."""

    def __init__(self, use):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.use = use
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.x = torch.randn(3, 4, 6, generator=generator)

    def loss(self, rows):
        x = self.x[list(rows)].requires_grad_()
        return torch.sin(self.second(self.use(self, x))).sum()


def around_the_module(m, x):
    return nn.functional.linear(x, m.first.weight, m.first.bias)


def tokens_in_one_row(m, x):
    return m.first(x.reshape(-1, 6)).reshape(x.shape)


def tokens_first(m, x):
    return m.first(x.transpose(0, 1)).transpose(0, 1)


def batch_statistics(m, x):
    return m.norm(m.first(x).transpose(1, 2)).transpose(1, 2)


def mean_over_the_batch(m, x):
    out = m.first(x)
    return out - out.mean(0)


def without_gradient(m, x):
    return m.first(x).detach()


def unused(m, x):
    return x


@pytest.mark.parametrize(
    "use",
    [
        around_the_module,
        tokens_in_one_row,
        tokens_first,
        batch_statistics,
        mean_over_the_batch,
        without_gradient,
        unused,
    ],
)
def test_a_layer_used_beside_the_rules_is_noticed(use):
    model = Small(use)
    with pytest.raises((PrivacyError), match=r"self-test|called on a batch"):
        check_gradients(model, UserGradients(model), model.loss, torch.tensor([1, 0, 1]))


def shared(m, x):
    return m.first(torch.tanh(m.first(x)))


def checkpointed(m, x):
    return checkpoint(lambda y: torch.tanh(m.first(y)), x, use_reentrant=False)


def reentrant(m, x):
    return checkpoint(lambda y: torch.tanh(m.first(y)), x, use_reentrant=True)


@pytest.mark.parametrize("use", [shared, checkpointed, reentrant])
def test_a_layer_used_twice_or_run_again_stays_right(use):
    model = Small(use)
    check_gradients(model, UserGradients(model), model.loss, torch.tensor([1, 0, 1]))


def test_a_layer_that_is_summed_as_well_is_not_left_with_a_gradient():
    model = Small(shared)
    kept = model.first.weight.grad = torch.ones(6, 6)
    check_gradients(model, UserGradients(model), model.loss, torch.tensor([1, 0, 1]))
    assert model.first.weight.grad is kept
    assert torch.equal(kept, torch.ones(6, 6))


def test_a_training_that_moves_nothing_is_noticed(small, monkeypatch):
    model = small.tiny("Bert")
    monkeypatch.setattr(TextModel, "load_adapter", lambda *_: None)
    with pytest.raises(PrivacyError, match="did not move"):
        small.private(model)


def test_one_parameter_that_stands_still_is_noticed():
    before = torch.arange(6.0)
    check_moved(before, before + 1, [2, 4])
    still = before.clone()
    still[2:] += 1
    with pytest.raises(PrivacyError, match="did not move"):
        check_moved(before, still, [2, 4])
