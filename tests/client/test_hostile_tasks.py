"""What a hostile aggregator can send to the daemon by the merchant's node, before the real API."""

import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client import flower_tasks
from tests.client.real_node import LIMIT, SIZE, train_request


def _array(values):
    return ArrayRecord({"flat": Array(values)})


def _json(text):
    return ConfigRecord({"json": text})


MALFORMED = {
    "empty": RecordDict(),
    "another record": RecordDict({"adapter": _array(np.zeros(3, np.float32))}),
    "not JSON": RecordDict(
        {"adapter": _array(np.zeros(SIZE, np.float32)), "request": _json("{" * 9000)}
    ),
    "long JSON": RecordDict(
        {"adapter": _array(np.zeros(SIZE, np.float32)), "request": _json("[" * 20_000)}
    ),
    "a pickle": RecordDict(
        {
            "adapter": ArrayRecord(
                {
                    "flat": Array(
                        dtype="float32",
                        shape=(SIZE,),
                        stype="numpy.ndarray",
                        data=b"cposix\nsystem\n(S'touch ran'\ntR.",
                    )
                }
            ),
            "request": _json("{}"),
        }
    ),
    "larger than any request": RecordDict(
        {"adapter": _array(np.zeros(LIMIT, np.float32)), "request": _json("{}")}
    ),
    "many arrays": RecordDict(
        {
            "adapter": ArrayRecord({str(i): Array(np.zeros(1, np.float32)) for i in range(300)}),
            "request": _json("{}"),
        }
    ),
    "not finite": RecordDict(
        {"adapter": _array(np.full(SIZE, np.nan, np.float32)), "request": _json("{}")}
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_message_is_refused_and_the_next_is_answered(node, daemon, name):
    running = daemon()
    node.put(node.message(MALFORMED[name]))
    found, _ = node.reply()
    assert found.error.reason == "refused: not a valid request"
    assert running.seen == []
    node.put(node.message(train_request()))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert not node.marker.exists()


def test_an_object_that_is_not_what_it_says_is_refused(node, daemon):
    running = daemon()

    def break_objects(message):
        tree = node.store.get_object_tree(message.metadata.message_id)
        for one in iterate_object_tree(tree):
            node.store.store[one.object_id].content = b"Evil 9\x00" + b"x" * 100

    node.put(node.message(train_request()), break_objects)
    found, _ = node.reply()
    assert found.error.reason == "refused: not a valid request"
    assert running.seen == []


def test_a_message_of_too_many_parts_is_refused_unread(node, daemon, monkeypatch):
    monkeypatch.setattr(flower_tasks, "_OBJECTS", 4)
    pulled = []
    real = flower_tasks.make_pull_object_fn_protobuf

    def spy(*args, **kwargs):
        pull = real(*args, **kwargs)
        return lambda i: pulled.append(i) or pull(i)

    monkeypatch.setattr(flower_tasks, "make_pull_object_fn_protobuf", spy)
    daemon()
    node.put(node.message(train_request()))
    assert node.reply()[0].error.reason == "refused: not a valid request"
    assert pulled == []


def test_a_message_that_is_too_large_is_not_read_to_its_end(node, daemon, monkeypatch):
    pulled = []
    real = flower_tasks.make_pull_object_fn_protobuf

    def spy(*args, **kwargs):
        pull = real(*args, **kwargs)

        def counted(object_id):
            content = pull(object_id)
            pulled.append(len(content))
            return content

        return counted

    monkeypatch.setattr(flower_tasks, "make_pull_object_fn_protobuf", spy)
    running = daemon()
    # 24 MB, in pieces of 5.
    huge = {"adapter": _array(np.zeros(6_000_000, np.float32)), "request": _json("{}")}
    node.put(node.message(RecordDict(huge)))
    assert node.reply()[0].error.reason == "refused: not a valid request"
    assert running.seen == []
    assert sum(pulled) < LIMIT + 2 * 5_300_000


def test_a_message_that_never_comes_whole_is_given_up_and_the_next_is_answered(
    node, daemon, monkeypatch
):
    # What a node keeps when a run ends while it receives: a task, a head, and no content.
    monkeypatch.setattr(flower_tasks, "_WHOLE", 0.5)
    running = daemon()

    def forget(message):
        tree = node.store.get_object_tree(message.metadata.message_id)
        for one in iterate_object_tree(tree):
            node.store.store[one.object_id].content = b""
            node.store.store[one.object_id].is_available = False

    node.put(node.message(train_request()), forget)
    until = time.monotonic() + 30
    while not running.troubles:
        assert time.monotonic() < until
        time.sleep(0.05)
    node.put(node.message(train_request(round=1)))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert [what.round for what in running.seen] == [1]
