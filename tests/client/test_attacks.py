"""Membership inference and gradient inversion succeed without noise and fail with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.attacks import invert_updates, membership_inference, noiseless
from client.audit import fresh_source, seeded_sources
from client.audit_canaries import frozen_head
from privacy.audit_curves import auc_limit, roc
from silotune.errors import PrivacyError


@pytest.fixture(scope="module")
def head(made_up_subject):
    return frozen_head(made_up_subject)


def _members(head, settings):
    attack = membership_inference(
        head,
        settings,
        targets=4,
        runs=40,
        sources=seeded_sources(0),
        generator=np.random.default_rng(0),
    )
    return attack, roc(attack.score, attack.member)


def test_membership_shows_without_noise_and_hides_below_the_limit_with_it(claim, head):
    attack, with_noise = _members(head, claim)
    _, without = _members(head, noiseless(claim))
    # Standard error of an AUC of 40 and 40 scores: 0.065.
    assert without.auc > 0.5 + 4 * 0.065
    assert with_noise.auc < without.auc - 0.1
    assert with_noise.auc < auc_limit(claim.claim, claim.delta)
    assert len(attack.score) == 4 * 20
    assert attack.member.sum() > 20


def test_without_sampling_and_noise_membership_is_certain(claim, head):
    sure = noiseless(replace(claim, privacy=replace(claim.privacy, sampling_rate=1.0)))
    assert _members(head, sure)[1].auc == 1.0


def test_the_frozen_head_computes_what_the_model_computes(subject):
    head = frozen_head(subject)
    rows = np.arange(20)
    width = subject.model.head.score.weight.shape[1]
    start = 0.1 * torch.randn(width + 1, generator=torch.Generator().manual_seed(0))
    known = head.model.head.score
    width = known.weight.shape[1]
    parts = {n: torch.zeros(s) for n, s in _shapes(subject.model).items()}
    parts["head.score.weight"][0, :width] = start[:width]
    parts["head.score.bias"][:] = start[-1]
    subject.model.load_adapter(subject.model.layout.flatten(parts))
    short = {"head.score.bias": start[-1:], "head.score.weight": start[None, :width]}
    head.model.load_adapter(head.model.layout.flatten(short))
    np.testing.assert_allclose(
        head.data.scores(head.model, rows),
        subject.data.scores(subject.model, rows),
        atol=1e-4,
    )


def _shapes(model):
    return dict(zip(model.layout.names, model.layout.shapes, strict=True))


def _inverted(subject, settings):
    return invert_updates(
        subject,
        settings,
        users=20,
        sources=seeded_sources(0),
        generator=np.random.default_rng(0),
    )


def test_inversion_reads_the_input_off_an_update_without_noise(claim, subject):
    found = _inverted(subject, noiseless(claim))
    assert found.similarity.min() > 0.999
    assert found.numeric.min() > 0.999
    assert found.identified == 1.0
    assert found.chance < 0.5


def test_inversion_of_a_noised_update_is_a_guess(claim, subject):
    found = _inverted(subject, claim)
    # 20 random directions in 60 dimensions or more: standard deviation of the mean 0.03.
    assert abs(found.similarity.mean()) < 0.15
    assert np.abs(found.similarity).max() < 0.6
    assert found.identified <= 0.3


def test_too_few_users_or_runs_are_refused(claim, head):
    few = {"sources": fresh_source, "generator": np.random.default_rng(0)}
    with pytest.raises(PrivacyError, match="8 runs"):
        membership_inference(head, claim, targets=1, runs=4, **few)
    with pytest.raises(PrivacyError, match="2 users"):
        invert_updates(head, claim, users=1, **few)
