"""The audit finds every broken version of the code it audits, and clears the sound one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import client.trainer
import privacy.randomness
from client.attacks import noiseless
from client.audit import fresh_source, one_run_scores, quick_audit, seeded_sources, trial_scores
from client.audit_canaries import bystanders, insert_canaries
from client.audit_run import subject_of
from privacy.audit import gaussian_canary_epsilon, one_run_epsilon
from privacy.randomness import SeededSource
from silotune.errors import ConfigError
from silotune.tables.silo_folder import SiloFolder
from silotune.tables.synthetic import SyntheticConfig, generate
from simulations.scenario import load_scenario


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
    found = [quick_audit(trials=600, seed=seed) for seed in range(4)]
    assert not any(f.refuted for f in found)
    # σ = 1 alone is ε = 4.4; what is found must be a useful share of it. One run in eight finds
    # less by chance: four of them do in 1 of 5,000.
    assert max(f.lower_bound for f in found) > 0.2 * found[0].claimed
    assert all(f.bound.noise_multiplier > 1.0 for f in found)


@pytest.mark.parametrize("name", ["noise off", "clip off"])
def test_one_run_refutes_the_claim_of_what_hides_nothing(claim, name, monkeypatch, subject):
    BROKEN[name](monkeypatch)
    easy = replace(claim, privacy=replace(claim.privacy, noise_multiplier=4.0))
    for seen in _one_run(subject, easy):
        assert one_run_epsilon(seen.score, seen.included, delta=1e-5).epsilon > easy.claim


def test_one_run_stays_below_the_claim_of_the_sound_version(claim, subject):
    for seen in _one_run(subject, claim):
        assert one_run_epsilon(seen.score, seen.included, delta=1e-5).epsilon < claim.claim


def _one_run(subject, settings):
    return one_run_scores(
        subject,
        settings,
        canaries=subject.room,
        sources=fresh_source,
        generator=np.random.default_rng(0),
    )


def test_a_canary_is_worth_exactly_one_clip_and_its_absence_nothing(claim, subject):
    quiet = noiseless(replace(claim, privacy=replace(claim.privacy, sampling_rate=1.0)))
    _, seen = _one_run(subject, quiet)
    # Four steps, four examples each: one clip a step.
    np.testing.assert_allclose(seen.score, 4.0 * seen.included, atol=1e-3)
    assert 0.4 < seen.included.mean() < 0.6


def test_the_canary_estimate_of_one_step_is_near_the_claim(claim, subject):
    one = replace(claim, steps=1, privacy=replace(claim.privacy, sampling_rate=1.0))
    _, seen = _one_run(subject, one)
    generator = np.random.default_rng(0)
    found = gaussian_canary_epsilon(seen.score, seen.included, delta=1e-5, generator=generator)
    # 400 canaries: a wide interval, but one that the claim lies in.
    assert 0.5 * found.low < one.step_claim < 2 * found.high
    # Width of the noise; standard error of one from 200 numbers is 0.05 of it.
    assert found.out.std == pytest.approx(2.0, rel=5 * 0.05)
    assert found.inside.mean - found.out.mean == pytest.approx(1.0, abs=5 * 0.2)


def test_canaries_leave_the_rows_of_real_users_as_they_are(subject):
    directions = np.eye(subject.room)[:3]
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


def test_more_canaries_than_directions_are_refused(claim, subject):
    with pytest.raises(ConfigError, match="canaries is 401"):
        one_run_scores(
            subject,
            claim,
            canaries=subject.room + 1,
            sources=fresh_source,
            generator=np.random.default_rng(0),
        )


def test_a_seed_repeats_the_audit_and_its_runs_differ(claim):
    people = bystanders(np.random.default_rng(0))

    def seen():
        return trial_scores(
            people,
            claim,
            trials=20,
            sources=seeded_sources(3),
            generator=np.random.default_rng(0),
        ).score

    assert np.array_equal(seen(), seen())
    assert np.unique(seen()).size == 20
    assert not quick_audit(trials=600, sources=seeded_sources(1)).refuted


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0.0}, {"delta": 0.0}, {"confidence": 1.0}],
)
def test_settings_out_of_range_are_refused_by_name(claim, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(claim, **wrong)


def test_a_task_that_is_no_yes_or_no_is_refused_with_a_way_out(tmp_path):
    generate(SyntheticConfig(merchants=1, users_per_merchant=8, weeks=4), tmp_path / "s")
    silo = SiloFolder.open(tmp_path / "s" / "merchant-0001")
    known = load_scenario("segment")
    with pytest.raises(ConfigError, match="one of 3 classes") as error:
        subject_of(silo, known.task, known.model, canaries=10)
    assert "Audit a yes-or-no task" in str(error.value)
