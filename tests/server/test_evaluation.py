import math
from dataclasses import asdict, replace

import pytest
import torch
from flwr.app import RecordDict

from server.evaluation import _plain, is_due, measured_quality
from server.rounds import RoundOptions, run_job
from server.run_store import RunStore
from silotune.errors import ConfigError, MessageError
from silotune.federation import Job, build_model, read_federation
from silotune.messages import reply
from simulations.inline_engine import InlineGrid

JOB = Job(
    name="measured",
    model="numeric",
    rounds=2,
    private={
        "clip_norm": 2.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "examples_per_user": 8,
        "steps": 1,
        "learning_rate": 0.5,
    },
    epsilon=60.0,
    metrics={"noise_multiplier": 0.5, "bins": 4},
)


class LiarGrid(InlineGrid):
    """Real clients, but node 1 answers a question about metrics with what it likes."""

    def __init__(self, nodes, path, forge):
        super().__init__(nodes, path)
        self.forge, self.asked = forge, []

    def push_messages(self, messages):
        messages = list(messages)
        self.asked += [m.metadata.message_type for m in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        for answer in super().pull_messages(message_ids):
            if answer.metadata.message_type == "evaluate" and answer.metadata.src_node_id == 1:
                yield from self.forge(answer)
            else:
                yield answer


def _run(small_federation, tmp_path, forge=lambda a: [a], job=JOB, store=None, **options):
    path = small_federation(tmp_path, job)
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    store = store or RunStore(tmp_path / "store", model.layout.digest)
    grid = LiarGrid(3, path, forge)
    run_job(grid, job, model, store, RoundOptions(nodes=3, **options))
    return grid, store


def _put(content):
    def forge(answer):
        answer.content = content
        return [answer]

    return forge


@pytest.mark.parametrize(
    "content",
    [
        reply(torch.full((8,), float("nan")), "metrics"),
        reply(torch.full((8,), float("inf")), "metrics"),
        reply(torch.zeros(9), "metrics"),
        reply(torch.zeros(8), "update"),
        RecordDict({}),
    ],
    ids=["nan", "inf", "longer", "an update", "empty"],
)
def test_a_liars_metrics_are_not_folded_in_and_are_tallied(small_federation, tmp_path, content):
    _, store = _run(small_federation, tmp_path, _put(content))
    record = store.metrics(1)
    assert (record["replies"], record["failures"]) == (2, 1)
    assert torch.isfinite(torch.tensor(record["sum"])).all()


def test_metrics_are_asked_after_the_last_round_or_every_so_many(small_federation, tmp_path):
    grid, store = _run(small_federation, tmp_path)
    assert grid.asked == ["train"] * 6 + ["evaluate"] * 3
    assert store.metrics(0) is None
    # A resumed run asks for what is missing, and for nothing else.
    (tmp_path / "store" / "metrics-0001.json").unlink()
    grid, store = _run(small_federation, tmp_path, store=store)
    assert grid.asked == ["evaluate"] * 3
    assert store.metrics(1)["replies"] == 3


def test_every_round_is_measured_where_that_is_asked(small_federation, tmp_path):
    grid, store = _run(small_federation, tmp_path, job=replace(JOB, metrics_every=1))
    assert grid.asked == (["train"] * 3 + ["evaluate"] * 3) * 2
    assert [store.metrics(round_)["replies"] for round_ in (0, 1)] == [3, 3]


@pytest.mark.parametrize(
    ("rounds", "every", "due"),
    [(5, None, [4]), (5, 2, [1, 3, 4]), (4, 2, [1, 3]), (3, 1, [0, 1, 2]), (2, 9, [1])],
)
def test_which_rounds_are_measured(rounds, every, due):
    job = replace(JOB, rounds=rounds, metrics_every=every)
    assert [r for r in range(rounds) if is_due(job, r)] == due
    assert not any(is_due(replace(job, metrics=None, metrics_every=None), r) for r in range(rounds))


def test_too_few_releases_stop_the_run_with_the_reasons_and_keep_its_rounds(
    small_federation, tmp_path
):
    with pytest.raises(MessageError, match="measured, metrics of round 1: 2 of 3 releases") as why:
        _run(small_federation, tmp_path, _put(RecordDict({})), quorum=0.9)
    assert "must hold ['metrics']" in str(why.value)
    grid, store = _run(small_federation, tmp_path, quorum=0.9)
    assert grid.asked == ["evaluate"] * 3
    assert store.metrics(1)["replies"] == 3


def test_what_is_stored_gives_the_figures_again(small_federation, tmp_path):
    _, store = _run(small_federation, tmp_path)
    (found,) = measured_quality(store.metrics(1))
    assert 0 <= found.positive_rate.value <= 1
    path = tmp_path / "store" / "metrics-0001.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ConfigError, match=r"metrics-0001\.json: damaged"):
        store.metrics(1)


def test_figures_are_stored_for_readers_without_torch_and_hidden_ones_are_null(
    small_federation, tmp_path
):
    _, store = _run(small_federation, tmp_path)
    text = (store.folder / "metrics-0001.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    record = store.metrics(1)
    (kept,), (found,) = record["quality"], measured_quality(record)
    assert kept["accuracy"]["middle"]["value"] == found.accuracy.middle.value
    assert kept["accuracy"]["high"]["standard_error"] == found.accuracy.high.standard_error
    lost = record | {"sum": [0.0] * len(record["sum"])}
    assert math.isnan(measured_quality(lost)[0].auc.middle.value)
    assert _plain(asdict(measured_quality(lost)[0]))["auc"]["middle"] == {
        "value": None,
        "standard_error": None,
    }


def test_a_plain_job_releases_no_metrics():
    with pytest.raises(ConfigError, match="only private jobs"):
        replace(JOB, private=None, epsilon=None, plain={"epochs": 1.0})
    with pytest.raises(ConfigError, match="metrics_every is 0"):
        replace(JOB, metrics_every=0)
