"""The audit finds every broken version of the code it audits, and clears the sound one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import client.trainer
import privacy.randomness
from client.attacks import invert_updates, membership_inference, noiseless
from client.audit import (
    AuditConfig,
    fresh_source,
    one_run_scores,
    quick_audit,
    seeded_sources,
    trial_scores,
)
from client.audit_canaries import Subject, bystanders, frozen_head, insert_canaries, widen
from client.audit_run import subject_of
from client.prepared import prepare
from privacy.audit import gaussian_canary_epsilon, one_run_epsilon
from privacy.audit_curves import auc_limit, roc
from privacy.dp_sgd import DPConfig
from privacy.randomness import SeededSource
from silotune.errors import ConfigError, PrivacyError
from silotune.federation import read_federation
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples

ROOM = 400
CLAIM = AuditConfig(
    privacy=DPConfig(clip_norm=4.0, noise_multiplier=2.0, sampling_rate=0.5),
    steps=4,
    learning_rate=1.0,
    delta=1e-5,
)


USERS, WIDTH = 30, 60
SLOW = pytest.param("text", marks=[pytest.mark.slow, pytest.mark.long])


@pytest.fixture(scope="module", params=["made_up", SLOW])
def subject(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def made_up():
    """Users with a few examples each of wide features, and a head alone."""
    generator = np.random.default_rng(0)
    user_E = np.repeat(np.arange(USERS), 3)
    rows = len(user_E)
    examples = Examples(
        text=[""] * rows,
        context=[],
        numeric_EF=generator.random((rows, WIDTH)).astype(np.float32),
        label_EK=(generator.random((rows, 1)) < 0.5).astype(np.float32),
        user_E=user_E,
        visit_E=user_E,
        group=[""] * rows,
        test_E=np.zeros(rows, np.bool_),
    )
    model = TextModel(ModelConfig(use_text=False), numeric_size=WIDTH + ROOM, outputs=1)
    return Subject(model, widen(prepare(examples, model), ROOM), USERS, ROOM)


@pytest.fixture(scope="module")
def text(small_federation, tmp_path_factory):
    federation = read_federation(small_federation(tmp_path_factory.mktemp("a"), "plain"))
    silo = SiloFolder.open(Path(federation.silos[0]))
    return subject_of(silo, federation.task, federation.models["text"], canaries=ROOM)


def weaker_noise(share):
    """What is released carries ``share`` of the noise that is claimed."""

    def patch(monkeypatch):
        real = client.trainer.noisy_mean

        def broken(parts, size, settings, *rest):
            wrong = replace(settings, noise_multiplier=share * settings.noise_multiplier)
            return real(parts, size, wrong, *rest)

        monkeypatch.setattr(client.trainer, "noisy_mean", broken)

    return patch


def wider_clip(factor):
    """The noise is as claimed, the clip is not."""

    def patch(monkeypatch):
        real = client.trainer.noisy_mean

        def broken(parts, size, settings, *rest):
            wrong = replace(
                settings,
                clip_norm=factor * settings.clip_norm,
                noise_multiplier=settings.noise_multiplier / factor,
            )
            return real(parts, size, wrong, *rest)

        monkeypatch.setattr(client.trainer, "noisy_mean", broken)

    return patch


def clip_per_example(monkeypatch):
    """Every example is clipped as if it were a user of its own."""
    real = client.trainer._user_gradients

    def broken(model, gradients, data, sample):
        return real(model, gradients, data, [row[None] for own in sample for row in own])

    monkeypatch.setattr(client.trainer, "_user_gradients", broken)


def seeded_noise(monkeypatch):
    """Every start of the silo draws the same noise."""
    monkeypatch.setattr(privacy.randomness, "SecureSource", lambda: SeededSource(0))


BROKEN = {
    "noise off": weaker_noise(1e-9),
    "noise halved": weaker_noise(0.5),
    "clip off": wider_clip(1e9),
    "clip doubled": wider_clip(2.0),
    "clip per example": clip_per_example,
    "seeded noise": seeded_noise,
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_audit_refutes_the_claim_of_each_broken_version(name, monkeypatch):
    BROKEN[name](monkeypatch)
    found = quick_audit(trials=600)
    assert found.lower_bound > found.claimed
    assert found.refuted


def test_the_audit_clears_the_sound_version_and_is_not_idle():
    found = [quick_audit(trials=600, seed=seed) for seed in range(2)]
    assert not any(f.refuted for f in found)
    # σ = 1 alone is ε = 4.4; what is found must be a useful share of it.
    assert max(f.lower_bound for f in found) > 0.2 * found[0].claimed
    assert all(f.bound.noise_multiplier > 1.0 for f in found)


@pytest.mark.parametrize("name", ["noise off", "clip off"])
def test_one_run_refutes_the_claim_of_what_hides_nothing(name, monkeypatch, subject):
    BROKEN[name](monkeypatch)
    easy = replace(CLAIM, privacy=replace(CLAIM.privacy, noise_multiplier=4.0))
    for seen in _one_run(subject, easy):
        assert one_run_epsilon(seen.score, seen.included, delta=1e-5).epsilon > easy.claim


def test_one_run_stays_below_the_claim_of_the_sound_version(subject):
    for seen in _one_run(subject, CLAIM):
        assert one_run_epsilon(seen.score, seen.included, delta=1e-5).epsilon < CLAIM.claim


def _one_run(subject, settings):
    return one_run_scores(
        subject,
        settings,
        canaries=ROOM,
        sources=fresh_source,
        generator=np.random.default_rng(0),
    )


def test_a_canary_is_worth_exactly_one_clip_and_its_absence_nothing(subject):
    quiet = noiseless(replace(CLAIM, privacy=replace(CLAIM.privacy, sampling_rate=1.0)))
    _, seen = _one_run(subject, quiet)
    # Four steps, four examples each: one clip a step.
    np.testing.assert_allclose(seen.score, 4.0 * seen.included, atol=1e-3)
    assert 0.4 < seen.included.mean() < 0.6


def test_the_canary_estimate_of_one_step_is_near_the_claim(subject):
    one = replace(CLAIM, steps=1, privacy=replace(CLAIM.privacy, sampling_rate=1.0))
    _, seen = _one_run(subject, one)
    generator = np.random.default_rng(0)
    found = gaussian_canary_epsilon(seen.score, seen.included, delta=1e-5, generator=generator)
    # 400 canaries: a wide interval, but one that the claim lies in.
    assert 0.5 * found.low < one.step_claim < 2 * found.high
    # Width of the noise; standard error of one from 200 numbers is 0.05 of it.
    assert found.out.std == pytest.approx(2.0, rel=5 * 0.05)
    assert found.inside.mean - found.out.mean == pytest.approx(1.0, abs=5 * 0.2)


def test_canaries_leave_the_rows_of_real_users_as_they_are(subject):
    directions = np.eye(ROOM)[:3]
    data = insert_canaries(subject.data, directions, 2)
    rows = np.arange(len(subject.data.examples))
    with torch.no_grad():
        before, after = (
            d.batch(rows, torch.device("cpu")).logits(subject.model) for d in (subject.data, data)
        )
    assert torch.equal(before, after)
    known = set(subject.data.examples.user_E.tolist())
    added = data.examples.user_E[len(rows) :]
    assert len(set(added.tolist())) == 3
    assert not known & set(added.tolist())


def test_more_canaries_than_directions_are_refused(subject):
    with pytest.raises(ConfigError, match="canaries is 401"):
        one_run_scores(
            subject,
            CLAIM,
            canaries=ROOM + 1,
            sources=fresh_source,
            generator=np.random.default_rng(0),
        )


def test_a_seed_repeats_the_audit_and_its_runs_differ():
    people = bystanders(np.random.default_rng(0))

    def seen():
        return trial_scores(
            people,
            CLAIM,
            trials=20,
            sources=seeded_sources(3),
            generator=np.random.default_rng(0),
        ).score

    assert np.array_equal(seen(), seen())
    assert np.unique(seen()).size == 20
    assert not quick_audit(trials=600, sources=seeded_sources(1)).refuted


@pytest.fixture(scope="module")
def head(made_up):
    return frozen_head(made_up)


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


def test_membership_shows_without_noise_and_hides_below_the_limit_with_it(head):
    attack, with_noise = _members(head, CLAIM)
    _, without = _members(head, noiseless(CLAIM))
    # Standard error of an AUC of 40 and 40 scores: 0.065.
    assert without.auc > 0.5 + 4 * 0.065
    assert with_noise.auc < without.auc - 0.1
    assert with_noise.auc < auc_limit(CLAIM.claim, CLAIM.delta)
    assert len(attack.score) == 4 * 20
    assert attack.member.sum() > 20


def test_without_sampling_and_noise_membership_is_certain(head):
    sure = noiseless(replace(CLAIM, privacy=replace(CLAIM.privacy, sampling_rate=1.0)))
    assert _members(head, sure)[1].auc == 1.0


def test_the_frozen_head_computes_what_the_model_computes(subject):
    head = frozen_head(subject)
    rows = np.arange(20)
    start = 0.1 * torch.randn(subject.model.head.score.weight.shape[1] + 1)
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


def test_inversion_reads_the_input_off_an_update_without_noise(subject):
    found = _inverted(subject, noiseless(CLAIM))
    assert found.similarity.min() > 0.999
    assert found.numeric.min() > 0.999
    assert found.identified == 1.0
    assert found.chance < 0.5


def test_inversion_of_a_noised_update_is_a_guess(subject):
    found = _inverted(subject, CLAIM)
    # 20 random directions in 60 dimensions or more: standard deviation of the mean 0.03.
    assert abs(found.similarity.mean()) < 0.15
    assert np.abs(found.similarity).max() < 0.6
    assert found.identified <= 0.3


def test_too_few_users_or_runs_are_refused(head):
    few = {"sources": fresh_source, "generator": np.random.default_rng(0)}
    with pytest.raises(PrivacyError, match="8 runs"):
        membership_inference(head, CLAIM, targets=1, runs=4, **few)
    with pytest.raises(PrivacyError, match="2 users"):
        invert_updates(head, CLAIM, users=1, **few)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0.0}, {"delta": 0.0}, {"confidence": 1.0}],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(CLAIM, **wrong)
