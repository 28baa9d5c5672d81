import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.policy import Ask, Policy
from silotune.config import from_toml
from silotune.errors import ConfigError, PolicyError

POLICY = Policy(epsilon=8.0, delta=1e-5, base_digests=("base",), servers=("server",))
ASK = {
    "server": "server",
    "task": "promotion-response",
    "base_digest": "base",
    "private": True,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "sampling_rate": 0.1,
    "steps": 10,
    "examples_per_user": 8,
}


def test_a_request_inside_every_limit_passes():
    POLICY.check(Ask(**ASK), nominal_users=100)


def test_every_reason_is_in_one_message():
    ask = ASK | {"noise_multiplier": 0.1, "clip_norm": 1e9, "steps": 10**6, "task": "x"}
    with pytest.raises(PolicyError) as caught:
        POLICY.check(Ask(**ask), nominal_users=100)
    assert caught.value.limits == ("task", "noise_multiplier", "clip_norm", "steps")
    assert "noise_multiplier: 0.1 is not >= 0.5" in str(caught.value)


number = st.floats() | st.integers(-(10**6), 10**6)


@given(number, number, number, number, number)
def test_nothing_outside_a_limit_passes_whatever_is_asked(noise, clip, rate, steps, examples):
    ask = Ask(
        **ASK
        | {
            "noise_multiplier": noise,
            "clip_norm": clip,
            "sampling_rate": rate,
            "steps": steps,
            "examples_per_user": examples,
        }
    )
    inside = noise >= 0.5 and clip <= 10 and rate <= 0.5 and steps <= 100 and examples <= 64
    if inside:
        POLICY.check(ask, nominal_users=100)
    else:
        with pytest.raises(PolicyError):
            POLICY.check(ask, nominal_users=100)


MEASURE = {k: ASK[k] for k in ("server", "task", "base_digest", "private")} | {
    "mechanism": "discrete-gaussian"
}


def test_metrics_may_leave_up_to_their_epsilon_and_no_others():
    policy = replace(POLICY, metrics={"scores": 0.5, "errors": 0.1})
    names = ("scores", "errors")
    policy.check(Ask(**MEASURE, metrics=names[:1], metrics_epsilon=0.5), nominal_users=100)
    for epsilon, reasons in ((0.2, 1), (0.6, 2), (math.nan, 2), (math.inf, 2)):
        with pytest.raises(PolicyError) as caught:
            policy.check(Ask(**MEASURE, metrics=names, metrics_epsilon=epsilon), nominal_users=100)
        assert caught.value.limits == ("metrics",) * reasons
    with pytest.raises(PolicyError, match="metrics: 'scores' is not listed"):
        POLICY.check(Ask(**MEASURE, metrics=names[:1], metrics_epsilon=1e-9), nominal_users=100)


def test_every_reason_against_metrics_is_in_one_message():
    policy = replace(POLICY, mechanisms=("gaussian",), metrics={"scores": 0.5})
    ask = MEASURE | {"server": "x", "task": "x", "base_digest": "x", "seeded": True}
    with pytest.raises(PolicyError) as caught:
        policy.check(Ask(**ask, metrics=("scores", "errors")), nominal_users=10**6)
    assert caught.value.limits == (
        *("delta", "server", "task", "base_digest", "mechanism", "metrics", "metrics", "noise"),
    )


def test_the_delta_must_fit_the_declared_users():
    with pytest.raises(PolicyError, match="delta: 1e-05 is not below 1/users"):
        POLICY.check(Ask(**ASK), nominal_users=100_000)


def test_plain_training_and_seeded_noise_need_a_word_in_the_policy():
    with pytest.raises(PolicyError, match="without privacy"):
        POLICY.check(Ask(**ASK | {"private": False}), nominal_users=100)
    with pytest.raises(PolicyError, match="seeded"):
        POLICY.check(Ask(**ASK | {"seeded": True}), nominal_users=100)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epsilon = 0.0", "epsilon is 0.0; it must be > 0"),
        ("delta = 1.0", "delta is 1.0"),
        ("noise_multiplier_min = 0", "must be > 0"),
        ("clip_norm_max = inf", "finite"),
        ("sampling_rate_max = 1.5", r"in \(0, 1\]"),
        ("noise_floor = 1.0", "unknown key 'noise_floor'"),
        ("reply_interval = -1.0", ">= 0"),
        ("[metrics]\nscores = 0.0", "must be > 0"),
        ("[metrics]\nscores = nan", "must be > 0"),
        ("[metrics]\nauc = 1.0", "metrics.auc is no release; known: scores, errors"),
    ],
)
def test_a_wrong_line_is_named_with_its_file(tmp_path, line, words):
    path = tmp_path / "policy.toml"
    lines = {"epsilon": "8.0", "delta": "1e-5", "base_digests": "['b']", "servers": "['s']"}
    lines.pop(line.partition(" ")[0], None)
    path.write_text("\n".join(f"{k} = {v}" for k, v in lines.items()) + "\n" + line)
    with pytest.raises(ConfigError, match=words) as caught:
        from_toml(Policy, path)
    assert str(path) in str(caught.value)
