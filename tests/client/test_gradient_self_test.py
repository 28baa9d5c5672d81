"""Broken layers and hooks against the self-test, and one user's worst case on the real path."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import client.self_test
import privacy.gradients
from client.prepared import PreparedExamples
from client.self_test import check_once
from client.trainer import train_private
from privacy.dp_sgd import DPConfig
from privacy.gradient_check import check_gradients, check_moved
from privacy.gradients import UserGradients
from privacy.randomness import SeededSource
from silotune.errors import PrivacyError
from silotune.models.adapter import AdapterLayout, LoraSettings, inject_lora
from silotune.models.prefix import FrozenPrefix
from silotune.models.text_model import Head, ModelConfig, TextModel
from silotune.tasks.base import Examples

WORDS, NUMERIC, LONGEST = 50, 3, 12
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def tiny(family, precision="float32", *, top_layers=None, outputs=1, **lora):
    """A TextModel on a random base of two small layers, without files and tokenizer."""
    model = TextModel(
        ModelConfig(use_text=False, precision=precision), numeric_size=NUMERIC, outputs=outputs
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        cfg = getattr(transformers, f"{family}Config")(**SHAPE)
        base = transformers.AutoModel.from_config(cfg, attn_implementation="eager")
    base.eval().requires_grad_(False)
    known = {"targets": ("all-linear",), "rank": 2, "train_a": True, "top_layers": top_layers}
    generator = torch.Generator().manual_seed(4)
    model.backbone = inject_lora(base, LoraSettings(**known | lora))
    model.pooling = "mean" if family == "Bert" else "last"
    model.prefix = FrozenPrefix(base, 0 if top_layers is None else 2 - top_layers)
    public = nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    model.head = Head(public, NUMERIC, outputs, model.cfg)
    model.layout = AdapterLayout.of(model)
    model.load_adapter(0.3 * torch.randn(model.layout.size, generator=generator))
    return model


def examples_of(tokens, numeric, label, user):
    count = len(tokens)
    length = np.array([len(t) for t in tokens], dtype=np.int64)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=np.asarray(numeric, dtype=np.float32).reshape(count, NUMERIC),
        label_EK=np.asarray(label, dtype=np.float32).reshape(count, 1),
        user_E=np.asarray(user, dtype=np.int64),
        visit_E=np.arange(count),
        group=["g"] * count,
        test_E=np.zeros(count, dtype=bool),
    )
    start = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64)
    ids = torch.from_numpy(np.concatenate([np.asarray(t, dtype=np.int32) for t in tokens]))
    return PreparedExamples(examples, ids, start, length, length, None)


def crowd(users=5, seed=0):
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 3)
    tokens = [random.integers(0, WORDS, random.integers(1, LONGEST)) for _ in user]
    return tokens, random.random((len(user), NUMERIC)), random.integers(0, 2, len(user)), user


DATA = examples_of(*crowd())


def private(model, data=DATA, source=None, **changes):
    known = {"clip_norm": 0.5, "noise_multiplier": 1.0, "sampling_rate": 1.0}
    before = model.adapter()
    train_private(
        model,
        data,
        DPConfig(**known | changes, examples_per_user=64),
        steps=1,
        learning_rate=1.0,
        nominal_users=20,
        source=source or SeededSource(0),
    )
    return model.adapter() - before


KINDS = {
    "encoder": {"family": "Bert"},
    "decoder": {"family": "Llama"},
    "top layer": {"family": "Bert", "top_layers": 1},
    "two outputs": {"family": "Llama", "outputs": 2},
    "frozen A": {"family": "Bert", "train_a": False},
    "bfloat16": {"family": "Llama", "precision": "bfloat16"},
    "bfloat16 encoder": {"family": "Bert", "precision": "bfloat16"},
}


def check(model):
    gradients = UserGradients(model)
    try:
        check_once(model, gradients)
    finally:
        gradients.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_passes_and_keeps_its_adapter(kind):
    model = tiny(**KINDS[kind])
    before, state = model.adapter(), torch.random.get_rng_state()
    check(model)
    assert torch.equal(model.adapter(), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_of_numbers_alone_passes():
    check(TextModel(ModelConfig(use_text=False), numeric_size=4, outputs=1))


def test_an_adapter_at_its_start_is_tested_all_the_same(monkeypatch):
    # B and head are zero: without the shift every LoRA gradient would be, right or wrong.
    model = tiny("Bert")
    model.load_adapter(torch.zeros(model.layout.size))
    check(model)
    break_product(monkeypatch, lambda rows: 2 * rows)
    with pytest.raises(PrivacyError, match="self-test"):
        check(tiny("Bert"))


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
def test_broken_collection_is_noticed_before_a_step(broken, monkeypatch):
    model = tiny("Bert")
    before = model.adapter()
    broken(monkeypatch)
    with pytest.raises(PrivacyError, match="self-test") as error:
        private(model)
    assert torch.equal(model.adapter(), before)
    assert "forward" not in vars(model.head.score)
    # Only a parameter's public name between fixed words.
    assert not any(c.isdigit() for c in str(error.value).split("'")[2])


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_collection_is_noticed_in_bfloat16_too(broken, monkeypatch):
    broken(monkeypatch)
    with pytest.raises(PrivacyError, match="self-test"):
        private(tiny("Bert", "bfloat16"))


def test_dropout_is_refused():
    model = tiny("Bert")
    model.train()
    with pytest.raises(PrivacyError, match="Switch dropout"):
        private(model)


def test_a_model_that_passed_is_checked_once_and_again_after_a_change_of_mode(monkeypatch):
    calls = []
    monkeypatch.setattr(client.self_test, "check_gradients", lambda *_, **__: calls.append(1))
    model = tiny("Bert")
    for _ in range(3):
        check(model)
    assert len(calls) == 1
    model.train()
    check(model)
    check(tiny("Bert"))
    assert len(calls) == 3


def test_the_self_test_takes_nothing_from_the_silo(monkeypatch):
    """Whether it passes must not depend on the data: not even on how many there are."""
    seen = []
    right = client.self_test._made_up

    def made_up(*args):
        seen.append(right(*args))
        return seen[-1]

    monkeypatch.setattr(client.self_test, "_made_up", made_up)
    source = SeededSource(0)
    private(tiny("Bert"), DATA, source)
    tokens, numeric, label, user = crowd(users=9, seed=1)
    private(tiny("Bert"), examples_of(tokens, numeric * np.nan, label, user), source)
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


def test_a_training_that_moves_nothing_is_noticed(monkeypatch):
    model = tiny("Bert")
    monkeypatch.setattr(TextModel, "load_adapter", lambda *_: None)
    with pytest.raises(PrivacyError, match="did not move"):
        private(model)


def test_one_parameter_that_stands_still_is_noticed():
    before = torch.arange(6.0)
    check_moved(before, before + 1, [2, 4])
    still = before.clone()
    still[2:] += 1
    with pytest.raises(PrivacyError, match="did not move"):
        check_moved(before, still, [2, 4])


class Silent:
    """Everybody sampled, no noise: the sum that the noise would hide."""

    is_private = False

    def uniform(self, count):
        return np.linspace(0, 0.999, count) if count else np.empty(0)

    def gaussian(self, count):
        return np.zeros(count)


ODD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e-40, 0.0]
NUMBERS = st.one_of(st.sampled_from(ODD), st.floats(-1e4, 1e4, width=32))
EXAMPLE = st.tuples(
    st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=LONGEST),
    st.lists(NUMBERS, min_size=NUMERIC, max_size=NUMERIC),
    NUMBERS,
)
PATHS = {
    f"{family} {precision}": (family, precision)
    for family in ("Bert", "Llama")
    for precision in ("float32", "bfloat16")
}


@pytest.fixture(scope="module")
def known_models():
    return {name: tiny(*how) for name, how in PATHS.items()}


def moved_by(model, user, clip, group):
    """Update with the user minus update without, in units of clip over normaliser."""
    tokens, numeric, label, who = crowd()
    extra = [list(part) for part in zip(*user, strict=True)]
    both = examples_of(
        [*tokens, *extra[0]],
        np.concatenate([numeric, np.array(extra[1])]),
        np.concatenate([label, np.array(extra[2])]),
        [*who, *[99] * len(user)],
    )
    start = model.adapter()
    gone = replace(both, examples=replace(both.examples, test_E=both.examples.user_E == 99))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        # Parts of whole users, so that the user is in one of its own or among others.
        patch.setattr(client.trainer, "_ROW_NUMBERS", group * model.layout.size)
        for data in (both, gone):
            model.load_adapter(start)
            found.append(private(model, data, Silent(), clip_norm=clip).double())
    model.load_adapter(start)
    assert all(torch.isfinite(f).all() for f in found)
    return float((found[0] - found[1]).norm() / (clip / 20)), start


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.integers(1, 64).flatmap(lambda n: st.lists(EXAMPLE, min_size=n, max_size=n)),
    clip=st.sampled_from([0.01, 0.3, 5.0]),
)
def test_one_users_worst_case_moves_the_update_by_at_most_clip_over_normaliser(
    known_models, path, user, clip
):
    moved, start = moved_by(known_models[path], user, clip, group=1)
    # The update is read off as the difference of two float32 adapters.
    reading = 4 * float(torch.finfo(torch.float32).eps * start.double().norm()) / (clip / 20)
    assert moved <= 1 + reading
