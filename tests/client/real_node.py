"""A real node's Runtime API and the daemon's loop before it, for tests of what comes by it."""

import io
import socket
import threading
import time
import zipfile
from types import SimpleNamespace

import pytest
import torch
import uvicorn
from flwr.app import Context, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from client.door import respond
from client.flower_tasks import serve
from silotune.errors import PolicyError
from silotune.messages import TrainRequest, request

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


def train_request(**changes):
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
