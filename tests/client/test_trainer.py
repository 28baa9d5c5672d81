"""The training loop itself under attack: sampling, clip, noise and steps as they are wired."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import client.trainer
from client.prepared import PreparedExamples, prepare
from client.trainer import train_private
from privacy.dp_sgd import DPConfig
from privacy.randomness import SeededSource
from silotune.federation import build_model, read_federation
from silotune.tables.silo_folder import SiloFolder

CLIP, RATE, USERS = 0.05, 1.0, 40


class Silent:
    """No noise, everybody sampled: shows the sum that the noise would hide."""

    is_private = False

    def __init__(self):
        self.gaussians = []

    def uniform(self, count):
        return np.linspace(0, 0.999, count) if count else np.empty(0)

    def gaussian(self, count):
        self.gaussians.append(count)
        return np.zeros(count)


@pytest.fixture(scope="module", params=["text", "numeric"])
def setting(request, small_federation, tmp_path_factory):
    federation = read_federation(small_federation(tmp_path_factory.mktemp("t"), "plain"))
    model = build_model(federation.models, request.param, federation.task)
    examples = federation.task.build(SiloFolder.open(Path(federation.silos[0])))
    # A head at zero sends no gradient into LoRA: start where every part moves.
    generator = torch.Generator().manual_seed(1)
    start = 0.1 * torch.randn(model.layout.size, generator=generator)
    return model, prepare(examples, model), start


def _settings(**changes):
    known = {"clip_norm": CLIP, "noise_multiplier": 1.0, "sampling_rate": RATE}
    return DPConfig(**known | changes, examples_per_user=64)


def _update(setting, data=None, *, source=None, steps=1, **changes):
    model, whole, start = setting
    model.load_adapter(start)
    train_private(
        model,
        data or whole,
        _settings(**changes),
        steps=steps,
        learning_rate=1.0,
        nominal_users=USERS,
        source=source or Silent(),
    )
    return model.adapter() - start


def _without(data: PreparedExamples, user: int) -> PreparedExamples:
    # Behind the split nobody trains on it: the same as if the user were not there.
    gone = data.examples.test_E | (data.examples.user_E == user)
    return replace(data, examples=replace(data.examples, test_E=gone))


def _busiest(data):
    return int(np.bincount(data.examples.user_E[data.examples.rows(test=False)]).argmax())


def test_one_user_with_many_examples_moves_the_update_by_one_clip_at_most(setting):
    _, data, _ = setting
    user = _busiest(data)
    assert (data.examples.user_E[data.examples.rows(test=False)] == user).sum() > 3
    moved = (_update(setting) - _update(setting, _without(data, user))).norm().item()
    # Clipped per example, the user would move it by several clips; this one's clip binds.
    assert moved == pytest.approx(CLIP / (RATE * USERS), rel=1e-3)


def test_batches_and_groups_of_any_size_give_the_same_update(setting, monkeypatch):
    whole = _update(setting)
    monkeypatch.setattr(client.trainer, "_TOKEN_BUDGET", 1)
    monkeypatch.setattr(client.trainer, "_ROW_NUMBERS", 1)
    assert torch.allclose(_update(setting), whole, rtol=1e-3, atol=1e-7)


def test_an_empty_sample_is_noise_alone_and_counts_as_a_step(setting):
    sigma, steps = 2.0, 3
    rate = 1e-9
    update = _update(
        setting,
        source=SeededSource(0),
        steps=steps,
        sampling_rate=rate,
        noise_multiplier=sigma,
    )
    expected = sigma * CLIP * np.sqrt(steps) / (rate * USERS)
    # Standard error of a standard deviation from n draws: 1 / sqrt(2 n).
    tolerance = 4 / np.sqrt(2 * len(update))
    assert update.std().item() == pytest.approx(expected, rel=tolerance)


def test_every_step_draws_noise_for_every_number(setting):
    source = Silent()
    _update(setting, source=source, steps=4)
    assert source.gaussians == [setting[0].layout.size] * 4


def test_the_divisor_is_the_declared_number_and_not_the_real_one(setting):
    _, data, _ = setting
    fewer = _without(data, _busiest(data))
    # Two samples of other sizes: their sums differ by what the one user gave, nothing else.
    difference = _update(setting) - _update(setting, fewer)
    alone = data
    for user in set(data.examples.user_E.tolist()) - {_busiest(data)}:
        alone = _without(alone, user)
    assert torch.allclose(difference, _update(setting, alone), rtol=1e-3, atol=1e-6)


def test_a_failure_in_a_round_leaves_the_model_as_it_was(setting, monkeypatch):
    model = setting[0]
    monkeypatch.setattr(client.trainer, "noisy_mean", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _update(setting)
    assert not any("forward" in m.__dict__ for m in model.head.modules())


def test_a_user_whose_features_are_not_numbers_leaves_no_trace(setting):
    _, data, _ = setting
    user = _busiest(data)
    numeric = data.examples.numeric_EF.copy()
    numeric[data.examples.user_E == user] = np.nan
    poisoned = replace(data, examples=replace(data.examples, numeric_EF=numeric))
    assert torch.allclose(
        _update(setting, poisoned), _update(setting, _without(data, user)), atol=1e-7
    )
