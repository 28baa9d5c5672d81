"""Runs that a merchant accepts: by the digest of their file, to the last number."""

from dataclasses import replace

import pytest

from client.accepted import check_run, load_accepted, read_run
from client.refusals import refusal
from client.setup import _RUNS
from privacy.policy import Policy
from silotune.errors import ConfigError, PolicyError
from silotune.messages import MetricsRequest, TrainRequest

RUN = """
nodes = 3
[task]
name = "promotion-response"
first = 2024-02-05T00:00:00
split = 2024-05-20T00:00:00
last = 2024-07-01T00:00:00
[model]
use_text = false
[job]
name = "job"
rounds = 2
epsilon = 8.0
[job.private]
noise_multiplier = 2.0
steps = 2
"""
COMMON = {
    "job": "job",
    "round": 0,
    "task": "promotion-response",
    "model": "text",
    "base_digest": "none",
    "layout_digest": "x",
}
TRAIN = TrainRequest(**COMMON, private={"noise_multiplier": 2.0, "steps": 2.0})
POLICY = Policy(epsilon=8.0, delta=1e-5, base_digests=("none",), servers=("x",))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "job.toml").write_text(RUN)
    return tmp_path


def _digest(folder, text):
    path = folder / "x.toml"
    path.write_text(text)
    return read_run(path)[1]


def test_the_digest_is_of_what_concerns_merchants(folder):
    known = _digest(folder, RUN)
    for same in (RUN + "\n# words\n", RUN.replace("nodes = 3", "nodes = 4\ndeadline = 5.0")):
        assert _digest(folder, same) == known
    for name, value in (("rounds", 3), ("steps", 3), ("noise_multiplier", 1.9), ("epsilon", 9.0)):
        line = next(x for x in RUN.splitlines() if x.startswith(f"{name} "))
        assert _digest(folder, RUN.replace(line, f"{name} = {value}")) != known


def test_only_requests_of_a_listed_run_are_answered(folder):
    listed = replace(POLICY, runs=(read_run(folder / "runs" / "job.toml")[1],))
    accepted = load_accepted(folder, listed)
    check_run(TRAIN, accepted)
    check_run(replace(TRAIN, round=1), accepted)
    for other in (
        replace(TRAIN, job="other"),
        replace(TRAIN, round=2),
        replace(TRAIN, task="churn"),
        replace(TRAIN, encoding="int8"),
        replace(TRAIN, private={"noise_multiplier": 2.0, "steps": 3.0}),
        replace(TRAIN, private=None, plain={"epochs": 1.0}),
        MetricsRequest(**COMMON, metrics={"noise_multiplier": 8.0}),
    ):
        with pytest.raises(PolicyError) as caught:
            check_run(other, accepted)
        assert refusal(caught.value) == "refused by the policy (run)"
    # A policy that lists none answers nobody; one that says any, whatever its limits allow.
    with pytest.raises(PolicyError):
        check_run(TRAIN, load_accepted(folder, replace(POLICY, runs=())))
    check_run(replace(TRAIN, job="other"), load_accepted(folder, POLICY))


def test_a_listed_run_whose_file_is_gone_or_changed_is_told(folder):
    listed = replace(POLICY, runs=(read_run(folder / "runs" / "job.toml")[1],))
    (folder / "runs" / "job.toml").write_text(RUN.replace("steps = 2", "steps = 20"))
    with pytest.raises(ConfigError, match="no file in"):
        load_accepted(folder, listed)


def test_the_line_of_runs_is_found_and_no_other():
    text = '# runs = ["a"]\nruns = ["b"]\nmore_runs = ["c"]\n'
    assert _RUNS.findall(text) == ['runs = ["b"]']
