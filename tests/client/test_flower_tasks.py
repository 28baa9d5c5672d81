"""The daemon's half before the node's real Runtime API, with what a hostile aggregator can send."""

import io
import socket
import sys
import threading
import time
import zipfile
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from client import flower_tasks
from client.door import respond
from client.flower_tasks import serve
from silotune.errors import PolicyError
from silotune.messages import TrainRequest, read_reply, request

RUN, NODE, SECRET, SIZE = 7, 42, b"k" * 32, 50
LIMIT = 4 * SIZE + 256 * 1024
HOSTILE = """
import os, pathlib
pathlib.Path("{marker}").write_text(repr(dict(os.environ)))
app = None
"""


def _bundle(marker):
    """An app bundle whose code leaves a mark when it is imported, unpacked above its folder."""
    content = io.BytesIO()
    code = HOSTILE.format(marker=marker)
    project = '[project]\nname="x"\nversion="../../1"\n[tool.flwr.app]\npublisher="x"\n'
    project += '[tool.flwr.app.components]\nserverapp="app:app"\nclientapp="app:app"\n'
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pyproject.toml", project)
        for name in ("app.py", "client/client_app.py", f"../../{marker.name}", "sitecustomize.py"):
            archive.writestr(name, code)
    return Fab("", content.getvalue(), {})


class Node:
    """A real node's Runtime API on a Unix socket, its state filled by hand."""

    def __init__(self, folder):
        self.folder, self.marker = folder, folder / "ran"
        self.path = folder / "node.sock"
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(NODE)
        fab = self.state.store_fab(_bundle(self.marker))
        run = Run.create_empty(RUN)
        run.fab_id, run.fab_version, run.fab_hash = "x/x", "../../1", fab
        self.state.store_run(run)
        context = Context(RUN, NODE, {}, RecordDict(), {})
        self.state.set_run_series_context(run.series_id, context)
        self.fab = fab
        ready = self.listening = socket.socket(socket.AF_UNIX)
        ready.bind(str(self.path))
        ready.listen(8)
        app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        self.thread = threading.Thread(target=self.server.run, args=([ready],), daemon=True)
        self.thread.start()

    def message(self, content, kind="train"):
        metadata = Metadata(
            run_id=RUN,
            message_id="",
            src_node_id=1,
            dst_node_id=NODE,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=600.0,
            message_type=kind,
        )
        return make_message(metadata=metadata, content=content)

    def put(self, message, break_objects=lambda _: None):
        """Give the node a message and the task that goes with it."""
        _insert_message(message, self.state, self.store)
        break_objects(message)
        return self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=self.fab)

    def reply(self, timeout=30):
        """Return the reply's metadata or error, and its objects."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for found in self.state.get_messages_legacy(is_reply=True):
                tree = self.store.get_object_tree(found.metadata.message_id)
                ids = [t.object_id for t in iterate_object_tree(tree)]
                while not all(self.store.get(i) for i in ids):
                    assert time.monotonic() < until
                    time.sleep(0.02)
                return found, {i: self.store.get(i) for i in ids}
            time.sleep(0.02)
        raise AssertionError("no reply")


@pytest.fixture
def node(tmp_path):
    one = Node(tmp_path)
    yield one
    one.server.should_exit = True
    one.thread.join(10)
    one.listening.close()


@pytest.fixture
def daemon(node, monkeypatch):
    """The daemon's loop in a thread, before a silo that answers with noise alone."""
    monkeypatch.chdir(node.folder)
    seen, troubles, threads, stop = [], [], [], threading.Event()

    class Place:
        log = node.folder / "silo.log"

        def open(self, what):
            seen.append(what)
            raise PolicyError("no", ("steps",))

    def start(place=None, answer=None, secret=SECRET):
        place = place or Place()
        options = {
            "answer": answer or (lambda message: respond(message, lambda: place)),
            "limit": LIMIT,
            "stop": stop,
            "trouble": troubles.append,
        }
        thread = threading.Thread(
            target=serve, args=(node.path, secret), kwargs=options, daemon=True
        )
        thread.start()
        threads.append(thread)
        return SimpleNamespace(seen=seen, troubles=troubles, thread=thread)

    yield start
    stop.set()
    for thread in threads:
        thread.join(20)


def _request(**changes):
    known = {
        "job": "job",
        "round": 0,
        "task": "promotion-response",
        "model": "text",
        "base_digest": "none",
        "layout_digest": "x",
        "private": {"steps": 1.0},
    }
    return request(TrainRequest(**known | changes), torch.zeros(SIZE))


def test_a_request_is_answered_and_the_bundle_never_runs(node, daemon):
    from silotune.messages import reply

    sent = torch.arange(SIZE, dtype=torch.float32)
    before = set(sys.modules)
    running = daemon(answer=lambda message: Message(reply(sent, "update"), reply_to=message))
    node.put(node.message(_request()))
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
    node.put(node.message(_request()))
    found, _objects = node.reply()
    assert found.has_error()
    assert found.error.reason == "refused by the policy (steps)"
    assert len(running.seen) == 1


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
    node.put(node.message(_request()))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert not node.marker.exists()


def test_an_object_that_is_not_what_it_says_is_refused(node, daemon):
    running = daemon()

    def break_objects(message):
        tree = node.store.get_object_tree(message.metadata.message_id)
        for one in iterate_object_tree(tree):
            node.store.store[one.object_id].content = b"Evil 9\x00" + b"x" * 100

    node.put(node.message(_request()), break_objects)
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
    node.put(node.message(_request()))
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

    node.put(node.message(_request()), forget)
    until = time.monotonic() + 30
    while not running.troubles:
        assert time.monotonic() < until
        time.sleep(0.05)
    node.put(node.message(_request(round=1)))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert [what.round for what in running.seen] == [1]


def test_without_the_secret_no_task_is_taken(node, daemon):
    running = daemon(secret=b"other" * 8)
    node.put(node.message(_request()))
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
    node.put(node.message(_request()))
    assert node.reply()[0].error.reason == "refused by the policy (steps)"
    assert running.troubles == []


def test_a_reply_is_the_array_that_the_server_reads(node, daemon):
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    from silotune.messages import reply

    sent = torch.randn(SIZE)
    daemon(answer=lambda message: Message(reply(sent, "update"), reply_to=message))
    node.put(node.message(_request()))
    found, objects = node.reply()
    message = inflate_object_from_contents(found.metadata.message_id, objects)
    assert torch.equal(read_reply(message.content, SIZE, "update"), sent)
