"""Rounds on the real loop and real silos: lost, late and repeated messages, who comes and goes."""

import datetime as dt
import time
from dataclasses import replace

import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows
from server.exchange import QuorumError, RoundOptions
from server.rounds import run_job
from server.run_store import RunStore
from silotune.federation import Job, build_model, read_federation
from simulations.inline_engine import InlineGrid

ALL = frozenset({1, 2, 3})
JOB = Job(
    name="private",
    model="numeric",
    rounds=1,
    epsilon=50.0,
    private={
        "clip_norm": 2.0,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.5,
        "examples_per_user": 4,
        "steps": 1,
        "learning_rate": 0.5,
    },
)
PLAIN = replace(
    JOB,
    epsilon=None,
    private=None,
    plain={"epochs": 1.0, "learning_rate": 0.1, "optimizer": "sgd", "batch_size": 16},
)


class Faulty(InlineGrid):
    """Real silos behind a network whose faults a test chooses.

    ``lose(node, nth)``: what becomes of the nth request (from 0) to the node: 'lost' without a
    trace, 'answered' and the reply lost, an `Error` from Flower, or None: all goes well.
    """

    def __init__(self, nodes, path, lose=lambda node, nth: None):
        super().__init__(nodes, path)
        self.lose, self.asked, self.connected = lose, [], lambda: ALL
        self.restarted = dict.fromkeys(ALL, 0.0)
        self.ttl = []
        self._errors = {}

    def get_nodes(self):
        for node in self.connected():
            when = dt.datetime.fromtimestamp(self.restarted[node], dt.UTC).isoformat()
            yield NodeInfo(node_id=node, last_activated_at=when)

    def get_node_ids(self):
        return list(self.connected())

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            fault = self.lose(node, self.asked.count(node))
            self.asked.append(node)
            self.ttl.append(message.metadata.ttl)
            (message_id,) = super().push_messages([message])
            ids.append(message_id)
            if isinstance(fault, str) and fault == "answered":
                # The silo trains and hands its reply over; then the reply is gone.
                super().pull_messages([message_id])
            elif isinstance(fault, Error):
                self._errors[message_id] = Message(fault, reply_to=self._waiting[message_id])
            if fault is not None:
                self._waiting.pop(message_id, None)
                # The process that held it is started again.
                self.restarted[node] = time.time() + 0.01
        return ids

    def pull_messages(self, message_ids):
        for message_id in list(self._errors):
            if message_id in message_ids:
                return [self._errors.pop(message_id)]
        return super().pull_messages(message_ids)


@pytest.fixture
def start(small_federation, tmp_path):
    """Start the real loop behind faults: grid, model, store, and the ledgers' reservations."""

    def made(lose=lambda node, nth: None, rounds=1, job=PLAIN):
        path = small_federation(tmp_path, replace(job, rounds=rounds))
        federation = read_federation(path)
        model = build_model(federation.models, JOB.model, federation.task)
        store = RunStore(tmp_path / "store", model.layout.digest)
        grid = Faulty(3, path, lose)

        def run(**changes):
            options = RoundOptions(**{"nodes": 3, "deadline": 60.0} | changes)
            return run_job(grid, federation.jobs[0], model, store, options)

        def ledgers():
            return [Chain.read(p) for p in sorted(tmp_path.rglob("*.db"))]

        return run, grid, store, ledgers

    return made


@pytest.mark.parametrize("fault", ["lost", "answered"])
def test_what_is_lost_with_a_process_is_asked_again_at_once(start, fault):
    run, grid, store, ledgers = start(
        lambda node, nth: fault if (node, nth) == (2, 0) else None, job=JOB
    )
    began = time.monotonic()
    run(deadline=600.0)
    # Its process came back: neither the deadline nor the silence of `ask_again` is waited for.
    assert time.monotonic() - began < 300
    assert sorted(grid.asked) == [1, 2, 2, 3]
    (record,) = store.records()
    assert (record["replies"], record["failures"], record["asked_again"]) == (3, 0, 1)
    # The stored release again, at no cost: one reservation each, and what the aggregator folded
    # in is what the receipts say.
    rows = [ledger_rows(entries) for entries in ledgers()]
    assert [len(r) for r in rows] == [1, 1, 1]
    assert sorted(r[0].sha256 for r in rows) == sorted(store.releases(0).values())


def test_an_error_of_flowers_own_is_asked_again(start):
    codes = {(1, 0): 3, (2, 0): 4, (3, 0): 5, (3, 1): 8}
    lost = {key: Error(code, "gone") for key, code in codes.items()}
    run, grid, store, _ = start(lambda node, nth: lost.get((node, nth)))
    run()
    assert sorted(grid.asked) == [1, 1, 2, 2, 3, 3, 3]
    assert next(store.records())["replies"] == 3


def test_a_ledger_that_is_busy_is_asked_again_after_a_while(start, monkeypatch):
    from server import exchange

    monkeypatch.setattr(exchange, "_BUSY_PAUSE", 1.0)
    busy = Error(100, "refused by the ledger")
    run, grid, store, _ = start(lambda node, nth: busy if node == 2 and nth < 2 else None)
    grid.restarted = Never()
    run()
    assert sorted(grid.asked) == [1, 2, 2, 2, 3]
    assert next(store.records())["replies"] == 3


def test_a_refusal_is_not_asked_again(start):
    refused = Error(100, "refused by the policy (noise_multiplier)")
    run, grid, store, _ = start(lambda node, nth: refused if node == 2 else None, rounds=2)
    with pytest.raises(QuorumError, match="1 × refused by the policy") as caught:
        run(cohort_min=3)
    assert caught.value.final
    assert sorted(grid.asked) == [1, 2, 3]
    assert store.next_round() == 0
    run(cohort_min=2)
    assert [r["failures"] for r in store.records()] == [1, 1]


class Never(dict):
    """No process was ever started again."""

    def __getitem__(self, _):
        return 0.0


def test_silence_is_asked_again_and_the_deadline_ends_it(start):
    run, grid, store, _ = start(lambda node, nth: "lost" if node == 2 else None)
    grid.restarted = Never()
    began = time.monotonic()
    run(deadline=9.0, ask_again=2.0)
    assert time.monotonic() - began >= 9
    # After 2 s, then after 4 more.
    assert grid.asked.count(2) == 3
    (record,) = store.records()
    assert (record["replies"], record["failures"]) == (2, 1)
    # A request does not outlive its round: whoever got it later would spend for nothing.
    assert max(grid.ttl) <= 9.0
    assert grid.ttl[-1] < grid.ttl[0] - 5


def test_late_and_repeated_replies_are_tallied_and_count_once(start):
    run, grid, store, ledgers = start(job=JOB)
    pull = grid.pull_messages

    def twice(ids):
        for answer in pull(ids):
            yield answer
            yield answer

    grid.pull_messages = twice
    run()
    (record,) = store.records()
    assert (record["replies"], record["late"]) == (3, 3)
    assert record["replies"] == len(ledgers())


def test_merchants_join_and_leave_between_rounds(start):
    run, grid, store, _ = start(rounds=3)
    there = [{1, 2, 3}, {1, 3}, {1, 2, 3}, {1, 2, 3}]
    grid.connected = lambda: there[store.next_round()]
    run(quorum=0.6)
    assert [set(store.releases(r)) for r in range(3)] == [{1, 2, 3}, {1, 3}, {1, 2, 3}]
    assert [r["asked"] for r in store.records()] == [3, 2, 3]


def test_who_connects_while_a_round_runs_is_asked_too(start):
    run, grid, store, _ = start(lambda node, nth: "lost" if (node, nth) == (1, 0) else None)
    looks = []

    def connected():
        # The first look is before the round.
        looks.append(1)
        return {1, 2} if len(looks) == 1 else ALL

    grid.connected = connected
    run(nodes=2)
    assert set(store.releases(0)) == ALL


def test_a_round_waits_for_the_minimum_cohort(start):
    run, grid, store, _ = start(rounds=2)
    grid.connected = lambda: {1, 2}
    with pytest.raises(QuorumError, match="2 of 3 nodes") as caught:
        run(deadline=1.0)
    # They may come.
    assert not caught.value.final
    grid.connected = lambda: ALL if store.next_round() == 0 else {1}
    with pytest.raises(QuorumError, match="1 of 2 nodes"):
        run(cohort_min=2, quorum=0.1, deadline=5.0)
    # What is done is kept.
    assert store.next_round() == 1


def test_a_merchant_that_leaves_within_a_round_does_not_hold_it_up(start, monkeypatch):
    from server import exchange

    monkeypatch.setattr(exchange, "_AWAY", 2.0)
    gone = Error(5, "Node Unavailable")
    run, grid, store, _ = start(lambda node, nth: gone if node == 3 else None)
    grid.connected = lambda: {1, 2} if 3 in grid.asked else ALL
    began = time.monotonic()
    run(deadline=600.0)
    assert time.monotonic() - began < 300
    assert set(store.releases(0)) == {1, 2}
    assert next(store.records())["failures"] == 1
