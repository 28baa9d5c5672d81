"""The daemon's half before the node's real Runtime API."""

import sys
import time

import httpx
import pytest
import torch
from flwr.app import Message
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType

from silotune.messages import read_reply
from tests.client.real_node import SIZE, train_request


def test_a_request_is_answered_and_the_bundle_never_runs(node, daemon):
    from silotune.messages import reply

    sent = torch.arange(SIZE, dtype=torch.float32)
    before = set(sys.modules)
    running = daemon(answer=lambda message: Message(reply(sent, "update"), reply_to=message))
    node.put(node.message(train_request()))
    found, objects = node.reply()
    assert not found.has_error()
    assert found.metadata.dst_node_id == 1
    assert any(sent.numpy().tobytes() in content for content in objects.values())
    assert not node.marker.exists()
    assert not list(node.folder.parent.glob("ran"))
    assert not {m for m in set(sys.modules) - before if m in ("app", "sitecustomize")}
    assert running.troubles == []


def test_what_the_silo_refuses_is_answered_in_fixed_words(node, daemon):
    running = daemon()
    node.put(node.message(train_request()))
    found, _objects = node.reply()
    assert found.has_error()
    assert found.error.reason == "refused by the policy (steps)"
    assert len(running.seen) == 1


def test_without_the_secret_no_task_is_taken(node, daemon):
    running = daemon(secret=b"other" * 8)
    node.put(node.message(train_request()))
    with pytest.raises(AssertionError, match="no reply"):
        node.reply(timeout=2)
    assert running.seen == []
    assert running.troubles
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(node.path))) as client:
        asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        answer = client.post(
            "http://localhost/v1/runtime/acquire-task",
            content=asked.SerializeToString(),
            headers={"content-type": "application/protobuf"},
        )
    assert answer.status_code in (401, 403)


# httpcore leaves a socket that could not connect to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_comes_back_finds_the_daemon_waiting(node, daemon):
    gone = node.path.with_name("gone.sock")
    node.path.rename(gone)
    running = daemon()
    time.sleep(0.8)
    gone.rename(node.path)
    node.put(node.message(train_request()))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert running.troubles == []


def test_a_reply_is_the_array_that_the_server_reads(node, daemon):
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    from silotune.messages import reply

    sent = torch.randn(SIZE)
    daemon(answer=lambda message: Message(reply(sent, "update"), reply_to=message))
    node.put(node.message(train_request()))
    found, objects = node.reply()
    message = inflate_object_from_contents(found.metadata.message_id, objects)
    assert torch.equal(read_reply(message.content, SIZE, "update"), sent)
