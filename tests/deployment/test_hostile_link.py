"""A SuperLink that answers nodes with whatever it likes, before a real node and a real daemon."""

import contextlib
import gzip
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_object_id
from google.protobuf.internal import encoder

from server.setup import control
from silotune.bundle import BUNDLE_SHA256
from tests.deployment.hostile_link import HostileLink, Raw
from tests.deployment.hostile_server import ledger_bytes

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

REFUSED = "refused: not a valid request"
HUGE = 10 * 2**30
MB = bytes(2**20)


def _message(number, run_id=1, content=None):
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=600.0,
        message_type="train",
    )
    known = RecordDict(
        {
            "adapter": ArrayRecord({"flat": Array(np.full(7, number, np.float32))}),
            "request": ConfigRecord({"json": "{}"}),
        }
    )
    if isinstance(content, Error):
        return make_message(metadata=metadata, error=content)
    return make_message(metadata=metadata, content=known if content is None else content)


def _peak(pid):
    """The most memory that a process ever held, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1])


def _forever():
    while True:
        yield MB


def _bomb():
    return gzip.compress(bytes(2**30), compresslevel=1)


@pytest.fixture(scope="module")
def link(federation):
    """The hostile SuperLink in the real one's place; the real one is back afterwards."""
    with control(federation.server) as real:
        ids = {n.public_key: n.node_id for n in real.nodes()}
    merchants = {m["name"]: m["node"] for m in federation.status()["merchants"]}
    target = merchants[federation.silos[0].name]
    federation.silotune("server", "stop", federation.server)
    one = HostileLink(
        federation.port, federation.server / "server.crt", federation.server / "server.key",
        ids, target,
    )  # fmt: skip
    try:
        yield one
    finally:
        one.close()
        federation.silotune("server", "start", federation.server)
        federation.until_online(2, timeout=300)


@pytest.fixture
def unharmed(federation):
    """Afterwards node and daemon are the processes that they were, and the ledger is untouched."""
    silo = federation.silos[0]
    before = ledger_bytes(silo)
    processes = {n: federation.state(silo)[n]["pid"] for n in ("node", "daemon")}
    yield processes
    assert {n: federation.state(silo)[n]["pid"] for n in processes} == processes
    assert ledger_bytes(silo) == before


@pytest.fixture
def outside():
    """A plain listener that notes who comes."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as ready:

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    raw, _ = ready.accept()
                    came.append(raw.recv(100))
                    raw.close()

        threading.Thread(target=listen, daemon=True).start()
        yield ready.getsockname()[1], came


def _part(content):
    """A message whose array's bytes are answered with ``content``."""
    number = time.time_ns() % 10**6

    def put(link):
        message = _message(number)
        tree_objects = message.content["adapter"]["flat"].deflate()
        return link.put(message, objects={get_object_id(tree_objects): content})

    return put


def test_an_answer_without_end_costs_no_memory(link, unharmed, outside):
    start = {n: _peak(p) for n, p in unharmed.items()}
    port, came = outside
    elsewhere = {"location": f"http://127.0.0.1:{port}/x", "content_length": 0}
    bomb = _bomb()
    hostile = {
        "without a length": Raw(_forever()),
        "with a length": Raw(_forever(), content_length=HUGE),
        "packed": Raw([bomb], content_length=len(bomb), content_encoding="gzip"),
        "elsewhere": Raw([], 307, **elsewhere),
    }
    for answer in hostile.values():
        assert link.reply(_part(answer)(link)) == REFUSED
    # The same in place of a message, where there is nothing to reply to.
    for answer in (Raw(_forever()), Raw(_forever(), content_length=HUGE), hostile["packed"],
                   hostile["elsewhere"]):  # fmt: skip
        link.queue.append(answer)
    link.until_taken()
    assert link.reply(link.put(_message(0.5))) == REFUSED
    assert came == []
    for name, pid in unharmed.items():
        assert _peak(pid) < start[name] + 100 * 2**20, name
    assert link.sent < HUGE / 10


def test_a_message_of_many_parts_is_not_read_to_its_end(link, unharmed):
    start = {n: _peak(p) for n, p in unharmed.items()}
    # 10 GB in parts of 5 MB, each what its name says.
    parts, ids = {}, []
    for number in range(60):
        ids.append(get_object_id(_chunk(number)))
        parts[ids[-1]] = lambda n=number: _chunk(n)
    # Whoever reads on finds that these are not: nobody does.
    ids += [f"{number:064x}" for number in range(1988)]
    message = _message(0.25)
    children = [ObjectTree(object_id=i) for i in ids]
    before = link.sent
    tree = ObjectTree(object_id=message.object_id, children=children)
    assert link.reply(link.put(message, objects=parts, tree=tree), 120) == REFUSED
    assert link.sent - before < 300 * 2**20
    assert _peak(unharmed["daemon"]) < start["daemon"] + 50 * 2**20
    assert _peak(unharmed["node"]) < start["node"] + 700 * 2**20


_BODY = bytes(5 * 2**20 - 8)


def _chunk(number):
    body = number.to_bytes(8, "big") + _BODY
    return f"ArrayChunk  {len(body)}".encode() + b"\x00" + body


def test_what_is_no_message_is_not_there(link, unharmed, federation):
    # Of the node.
    log = federation.silos[0] / "logs" / "node.log"
    one = PullMessagesResponse.FromString(_head(link))
    two = PullMessagesResponse.FromString(_head(link))
    two.messages_list.append(two.messages_list[0])
    unnamed = PullMessagesResponse.FromString(_head(link))
    unnamed.message_object_trees[0].children.append(ObjectTree(object_id="../../etc/passwd"))
    another = PullMessagesResponse.FromString(_head(link))
    another.message_object_trees[0].object_id = "f" * 64
    headless = PullMessagesResponse.FromString(_head(link))
    headless.messages_list[0].Clear()
    bare = PullMessagesResponse(messages_list=one.messages_list)
    many = PullMessagesResponse.FromString(_head(link))
    many.message_object_trees[0].children.extend(
        ObjectTree(object_id=f"{i:064x}") for i in range(5000)
    )
    # Protobuf itself would not make one that is so deep.
    tree = b""
    for _ in range(300):
        tree = _field(ObjectTree, "children", tree)
    nested = bare.SerializeToString() + _field(PullMessagesResponse, "message_object_trees", tree)
    cases = [b"\xff" * 1000, b"<html>", two, unnamed, another, headless, bare, many, nested]
    said = log.read_text().count('"refused"')
    link.queue += cases
    link.until_taken()
    assert link.reply(link.put(_message(0.75))) == REFUSED
    assert log.read_text().count('"refused"') >= said + len(cases)


def _field(message, name, content):
    number = message.DESCRIPTOR.fields_by_name[name].number
    return encoder.TagBytes(number, 2) + encoder._VarintBytes(len(content)) + content


def _head(link):
    link.put(_message(time.time_ns() % 1000))
    return link.queue.pop().SerializeToString()


def test_a_message_that_is_not_what_it_says_is_refused(link, unharmed):
    chunk = _message(0.1).content["adapter"]["flat"].deflate()
    replies = [
        link.put(_message(1), run=21, fab_hash="0" * 64),
        link.put(_message(3, run_id=999)),
        _part(b"Evil  3\x00abc")(link),
        _part(chunk)(link),
        link.put(_message(5), run=22, fab_hash=GetRunResponse(
            run=Run(run_id=77, fab_hash=BUNDLE_SHA256, primary_task_type="flwr-agentapp"))),
    ]  # fmt: skip
    assert [link.reply(r) for r in replies] == [REFUSED] * len(replies)
    # A run that cannot be read is none, and its message is not taken.
    link.put(_message(6), run=23, fab_hash=b"\xff" * 50)
    # Nor is one that holds an error and content.
    link.put(_message(4, content=Error(1, "x")))
    link.until_taken()
    assert link.reply(link.put(_message(7))) == REFUSED
    assert "get-fab" not in link.asked
    assert all(r.metadata.src_node_id == link.target for r in link.replies)
    assert all(not r.HasField("content") or r.HasField("error") for r in link.replies)
