from dataclasses import replace

import pytest
import torch
from flwr.app import RecordDict

from server.rounds import RoundOptions, run_job
from server.run_store import RunStore
from silotune.errors import MessageError
from silotune.federation import build_model, read_federation
from silotune.messages import reply
from simulations.inline_engine import InlineGrid


class HostileGrid(InlineGrid):
    """Real clients, but the reply of node 1 is put in another's place."""

    def __init__(self, nodes, path, forge):
        super().__init__(nodes, path)
        self.forge = forge

    def pull_messages(self, message_ids):
        for answer in super().pull_messages(message_ids):
            if answer.metadata.src_node_id == 1:
                yield from self.forge(answer)
            else:
                yield answer


def _start(small_federation, tmp_path, forge=None):
    path = small_federation(tmp_path, "numeric")
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    store = RunStore(tmp_path / "store", model.layout.digest)
    grid = HostileGrid(3, path, forge) if forge else InlineGrid(3, path)
    return grid, federation.jobs[0], model, store


def test_a_killed_run_goes_on_at_its_round_and_ends_the_same(small_federation, tmp_path):
    grid, job, model, store = _start(small_federation, tmp_path)
    whole = run_job(grid, job, model, store, RoundOptions(nodes=3))
    (tmp_path / "store" / "round-0001.safetensors").unlink()
    asked = []
    again = run_job(grid, job, model, store, RoundOptions(nodes=3), lambda *a: asked.append(a[1]))
    assert torch.equal(whole, again)
    assert whole.abs().sum() > 0
    # What is durable is not trained a second time, and a run that is whole asks for nothing.
    assert set(asked) == {1}
    asked.clear()
    run_job(grid, job, model, store, RoundOptions(nodes=3), lambda *a: asked.append(a[1]))
    assert asked == []


def _content(answer, content):
    answer.content = content
    return answer


@pytest.mark.parametrize(
    "forge",
    [
        lambda a: [_content(a, reply(torch.full((7,), float("nan")), "update"))],
        lambda a: [_content(a, reply(torch.zeros(8), "update"))],
        lambda a: [_content(a, RecordDict({}))],
        lambda _: [],
    ],
    ids=["nan", "wrong length", "empty", "no reply"],
)
def test_one_hostile_merchant_is_dropped_and_tallied(small_federation, tmp_path, forge):
    grid, job, model, store = _start(small_federation, tmp_path, forge)
    adapter = run_job(grid, job, model, store, RoundOptions(nodes=3, deadline=8.0))
    assert torch.isfinite(adapter).all()
    assert [r["replies"] for r in store.records()] == [2, 2]


def test_a_reply_that_comes_twice_counts_once(small_federation, tmp_path):
    grid, job, model, store = _start(small_federation, tmp_path, lambda a: [a, a])
    run_job(grid, job, model, store, RoundOptions(nodes=3))
    assert [r["replies"] for r in store.records()] == [3, 3]


def test_too_few_updates_stop_the_run_with_the_reasons(small_federation, tmp_path):
    grid, job, model, store = _start(
        small_federation, tmp_path, lambda a: [_content(a, RecordDict({}))]
    )
    with pytest.raises(MessageError, match="2 of 3 updates") as caught:
        run_job(grid, job, model, store, RoundOptions(nodes=3, quorum=0.9))
    assert "must hold ['update']" in str(caught.value)
    assert store.next_round() == 0


def test_a_message_is_built_for_every_node_once(small_federation, tmp_path):
    grid, job, model, store = _start(small_federation, tmp_path)
    seen = []
    push = grid.push_messages
    grid.push_messages = lambda m: push([seen.append(x.metadata.dst_node_id) or x for x in m])
    run_job(grid, job, model, store, RoundOptions(nodes=3))
    assert seen == [1, 2, 3, 1, 2, 3]


def test_momentum_keeps_its_share_of_the_last_movement_over_a_restart(small_federation, tmp_path):
    def after(rounds, momentum, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        grid, job, model, store = _start(small_federation, tmp_path / folder)
        start = model.adapter()
        for count in rounds:
            job = replace(job, rounds=count, server_momentum=momentum)
            run_job(grid, job, model, store, RoundOptions(nodes=3))
        return [start, *(store.load(r) for r in range(rounds[-1]))]

    plain, kept = after([1], 0.0, "plain"), after([1, 3], 0.5, "kept")
    torch.testing.assert_close(kept[1], plain[1])
    # Every update is what the merchants answer to the adapter that they were sent.
    whole = after([3], 0.5, "whole")
    for one, other in zip(kept, whole, strict=True):
        torch.testing.assert_close(one, other)
    without = after([2], 0.0, "without")
    torch.testing.assert_close(kept[2] - without[2], 0.5 * (kept[1] - kept[0]))
