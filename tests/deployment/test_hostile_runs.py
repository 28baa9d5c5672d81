"""A merchant's pin: requests of the run file that it accepted are answered, and no others."""

import re

import pytest

from client.accepted import read_run
from silotune.messages import request
from tests.deployment.hostile_server import Operator, ledger_bytes, reasons

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

REFUSED = "refused by the policy (run)"


@pytest.fixture
def pinned(federation):
    """The second silo with a policy that lists one run file; as before afterwards."""
    silo = federation.silos[1]
    run = federation.run_file(name="pinned", noise=16.0, rounds=2)
    policy = silo / "policy.toml"
    before = policy.read_text()
    policy.write_text(re.sub("(?m)^runs = .*$", "runs = []", before))
    federation.silotune("client", "accept", silo, "--run", run)
    assert read_run(run)[1] in policy.read_text()
    _restart(federation, silo)
    try:
        yield silo, run
    finally:
        policy.write_text(before)
        _restart(federation, silo)


def _restart(federation, silo):
    federation.silotune("client", "stop", silo)
    federation.silotune("client", "start", silo)


def test_a_run_that_changed_is_refused_and_the_accepted_one_is_answered(federation, pinned):
    silo, file = pinned
    operator = Operator(federation, file)
    start = operator.model.adapter()
    job = operator.asked.job

    def train(**changes):
        return "train", request(operator.train(**changes), start)

    changed = {
        "another job": train(job="promotions"),
        "a longer run": train(round=job.rounds),
        "a name that is no name": train(job="x" * 10_000 + "\n"),
        "metrics that it does not have": ("evaluate", request(operator.measure(), start)),
        "another encoding": train(encoding="int8"),
    } | {
        f"another {name}": train(private=job.private | {name: value})
        for name, value in (
            ("noise_multiplier", 15.9),
            ("learning_rate", 0.4),
            ("steps", 1),
            ("examples_per_user", 7),
        )
    }
    before = ledger_bytes(silo)
    with operator.run() as sender:
        # Inside every limit of the policy, and yet not what was read and accepted.
        assert reasons(sender.ask(silo, changed)) == dict.fromkeys(changed, REFUSED)
        assert ledger_bytes(silo) == before
        assert reasons(sender.ask(silo, {"accepted": train()})) == {"accepted": "answered"}


def test_a_run_file_that_is_not_what_the_policy_lists_stops_the_daemon_in_words(federation, pinned):
    silo, _ = pinned
    kept = silo / "runs" / "pinned.toml"
    before = kept.read_text()
    federation.silotune("client", "stop", silo)
    try:
        kept.write_text(before.replace("steps = 2", "steps = 3"))
        said = federation.silotune("client", "start", silo, "--wait", 15, fails=True)
        assert "not ready" in said
        assert "no file in" in (silo / "logs" / "daemon.log").read_text()
    finally:
        kept.write_text(before)
        federation.silotune("client", "stop", silo)
        federation.silotune("client", "start", silo)
