"""What training makes of stored activations: the same curve, or none where it does not pay."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.prefix_choice import Choice, Costs, note_choice
from client.prepared import Work, _with_prefix
from client.trainer import PlainConfig, train_plain

# Ten times the rate, and training on 15 examples is unstable: the last bit grows to a tenth.
SETTINGS = PlainConfig(learning_rate=0.003, batch_size=4)
FAMILIES = ("Bert", "Llama", "GPT2", "Qwen2")
# Loss over 20 steps. float32: sums of another order. bfloat16: the activations are rounded to
# 8 bits; computing all in bfloat16 in place of float32 moves the curve by up to 0.006.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}


def stored(small, folder, family="Bert", precision="float32", mode="on", passes=None):
    """A model, its examples with what was decided about their activations, and the work."""
    model = small.tiny(family, precision, top_layers=1)
    model.precision = getattr(torch, precision)
    model.cfg = replace(model.cfg, prefix_cache=mode)
    work = Work()
    return model, _with_prefix(small.data, model, folder, passes, work), work


def _seeded():
    return torch.Generator().manual_seed(4)


@torch.no_grad()
def curve(model, data, train):
    """Loss over all examples before training and after each of five rounds."""
    model.load_adapter(0.3 * torch.randn(model.layout.size, generator=_seeded()))
    losses = []
    rows = np.arange(len(data.examples))
    for round_ in range(6):
        if round_:
            train(model, data, round_)
        logits = torch.from_numpy(data.scores(model, rows))
        label = torch.from_numpy(data.examples.label_EK)
        losses.append(nn.functional.binary_cross_entropy_with_logits(logits, label).item())
    return losses


@torch.enable_grad()
def plain(model, data, round_):
    train_plain(model, data, SETTINGS, epochs=1, seed=round_)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_is_that_of_running_everything(small, tmp_path, family, precision):
    with_states = stored(small, tmp_path, family, precision)
    assert with_states[1].stored_NH.dtype == getattr(torch, precision)
    without = stored(small, tmp_path, family, precision, mode="off")
    assert without[1].stored_NH is None
    ours, full = curve(*with_states[:2], plain), curve(*without[:2], plain)
    assert full[0] - full[-1] > 0.03  # it learns
    assert ours == pytest.approx(full, abs=TOLERANCE[precision])
    # Not so with another text's activations.
    wrong = replace(with_states[1], stored_NH=with_states[1].stored_NH.flip(0))
    assert curve(with_states[0], wrong, plain) != pytest.approx(full, abs=TOLERANCE[precision])


@pytest.mark.parametrize("family", ["Bert", "GPT2"])
def test_the_private_update_is_that_of_running_everything(small, tmp_path, family):
    model, data, _ = stored(small, tmp_path, family)
    other, full, _ = stored(small, tmp_path, family, mode="off")
    update, expected = small.private(model, data), small.private(other, full)
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["Bert", "GPT2"])
def test_dropout_of_the_base_is_off_in_what_is_stored_whatever_the_mode(small, tmp_path, family):
    model, data, _ = stored(small, tmp_path / "a", family)
    assert any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout))
    again = small.tiny(family, top_layers=1)
    again.train()
    again.cfg = model.cfg
    second = _with_prefix(small.data, again, tmp_path / "b", None, Work())
    assert torch.equal(second.stored_NH, data.stored_NH)
    assert all(m.training for m in again.modules())
    # And off in training: two runs are the same to the last bit.
    runs = [curve(*stored(small, tmp_path / "a", family)[:2], plain) for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_second_use_runs_no_layer_and_a_deeper_cut_does(small, tmp_path):
    assert stored(small, tmp_path)[2].texts_run == len(small.data.length_E)
    _, data, work = stored(small, tmp_path)
    assert work == Work()
    assert data.stored_NH is not None


@pytest.mark.parametrize(
    ("change", "run"),
    [
        (lambda m: setattr(m, "base_digest", "other"), True),
        (lambda m: setattr(m, "tokenizer_digest", "other"), True),
        (lambda m: setattr(m.prefix.model.config, "layer_norm_eps", 1e-3), True),
        (lambda m: setattr(m, "precision", torch.bfloat16), True),
        (lambda m: m.load_adapter(torch.ones(m.layout.size)), False),
        (lambda m: setattr(m.prefix.model.config, "_name_or_path", "elsewhere"), False),
    ],
    ids=["base", "tokenizer", "configuration", "precision", "adapter", "folder of the base"],
)
def test_everything_the_activations_depend_on_is_part_of_the_key(small, tmp_path, change, run):
    stored(small, tmp_path)
    model = small.tiny("Bert", top_layers=1)
    change(model)
    work = Work()
    _with_prefix(small.data, model, tmp_path, None, work)
    assert (work.texts_run > 0) == run


COSTS = Costs(compute=100e-6, store=1e-6, read=1e-6)


@pytest.mark.parametrize(
    ("changes", "new", "passes", "on"),
    [
        ({}, 1.0, None, True),
        ({}, 1.0, 10.0, True),
        ({}, 1.0, 1.0, False),  # one pass: storing is work on top
        ({}, 1.0, 0.0, False),
        ({}, 0.1, 1.0, True),  # nine tenths are there already
        ({}, 0.0, 1.0, True),
        ({"read": 150e-6}, 0.0, None, False),  # a slow disk, a fast accelerator
        ({"read": 150e-6}, 0.0, 100.0, False),
        ({"store": 500e-6}, 1.0, 5.0, False),
        ({"store": 500e-6}, 1.0, 10.0, True),
        ({"compute": math.nan}, 0.0, 1.0, True),
    ],
)
def test_the_choice_is_the_cheaper_way(changes, new, passes, on):
    assert Choice.measured(replace(COSTS, **changes), new, passes).on == on


def test_a_single_pass_is_left_to_the_model_and_nothing_stays(small, tmp_path):
    model, data, work = stored(small, tmp_path, mode="auto", passes=0.5)
    assert data.stored_NH is None
    assert not data.choice.on
    assert list(tmp_path.iterdir()) == []
    assert work == Work()
    model(*[getattr(data.batch(np.arange(3), torch.device("cpu")), f) for f in _FORWARD])


_FORWARD = ("ids_ET", "mask_ET", "numeric_EF", "pool_ET", "stored_ETH")


def test_the_log_says_what_was_decided_and_why_and_nothing_else(tmp_path):
    log = tmp_path / "logs" / "silo.log"
    note_choice("a, model 'text'", Choice.measured(COSTS, 1.0, 12.0), log)
    line = json.loads(log.read_text())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "process": "silo",
        "event": "prefix cache",
        "on": True,
        "of": "a, model 'text'",
        "why": "measured: a token takes 1e+02 µs to compute, "
        "1 µs to store, 1 µs to read; 12 passes expected",
    }
    note_choice("a", Choice(False, "by configuration"), tmp_path)  # no file: no error
