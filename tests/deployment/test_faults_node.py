"""A node that would wait for ever: Flower's loop takes no message before the last is answered."""

import time

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.nodestate import NodeStateFactory

from client import flower_node

RUN, NODE = 5, 7


@pytest.fixture
def state(monkeypatch):
    """A real node's state, and pauses that are short."""
    monkeypatch.setattr(flower_node, "_STUCK", 0.4)
    monkeypatch.setattr(flower_node, "_SLEEP", 0.02)
    known = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
    known.set_node_id(NODE)
    run = Run.create_empty(RUN)
    run.fab_hash = known.store_fab(Fab("", b"x", {}))
    known.store_run(run)
    known.set_run_series_context(run.series_id, Context(RUN, NODE, {}, RecordDict(), {}))
    return known


def _task(state):
    return state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="x")


def _wait(state, pause, seconds=1.5):
    """Sleep as Flower's loop does; return whether the node went on."""
    pauses, until = flower_node._Pauses(state), time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            pauses.sleep(pause)
    except SystemExit:
        return False
    return True


def test_a_node_waits_for_its_daemon_as_long_as_one_may_answer(state):
    task = _task(state)
    assert _wait(state, 0.5)
    assert state.claim_task(task)
    assert _wait(state, 0.5)
    assert state.activate_task(task)
    assert _wait(state, 0.5)


@pytest.mark.parametrize("began", [False, True])
def test_a_node_whose_task_ended_without_an_answer_starts_again(state, began):
    task = _task(state)
    state.claim_task(task)
    if began:
        state.activate_task(task)
    assert state.finish_task(task, SubStatus.FAILED, "")
    assert not _wait(state, 0.5)


def test_a_node_without_work_waits_for_messages(state):
    assert _wait(state, 3)


def test_an_answer_that_would_stay_until_the_next_message_starts_the_node_again(state):
    metadata = Metadata(
        run_id=RUN,
        message_id="",
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=600.0,
        message_type="train",
    )
    asked = make_message(metadata=metadata, content=RecordDict())
    asked.metadata.__dict__["_message_id"] = asked.object_id
    answer = Message(Error(100, "x"), reply_to=asked)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    state.store_message(answer)
    assert not _wait(state, 3)
    assert state.get_messages_legacy(is_reply=True)
    assert _wait(state, 3)
