"""A hostile merchant between two honest ones: rounds go on without it, and as without it."""

import contextlib
import json
import sqlite3

import httpx
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from safetensors.torch import load_file

from privacy.chain import Chain
from silotune.messages import reply
from tests.deployment.hostile_merchant import HostileMerchant
from tests.deployment.hostile_server import Operator

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

SIZE = 7


def _array(values):
    return RecordDict({"update": ArrayRecord({"flat": Array(np.asarray(values))})})


def _send(content):
    return lambda merchant, message: merchant.push(Message(content, reply_to=message))


def _lie():
    array = Array(dtype="float32", shape=(SIZE,), stype="numpy.ndarray", data=b"x" * 200)
    return RecordDict({"update": ArrayRecord({"flat": array})})


def _with_metrics():
    content = reply(torch.zeros(SIZE), "update")
    content["metrics"] = MetricRecord({"examples": 10**9})
    return content


def _not_a_message(merchant, message):
    # The parts are whole and named by their digests; the first is an array, not a message.
    made = _array(np.zeros(SIZE, np.float32))["update"]["flat"]
    children = [ObjectTree(object_id=i) for i in made.children]
    tree = ObjectTree(object_id=made.object_id, children=children)
    objects = {made.object_id: made.deflate()} | {
        i: child.deflate() for i, child in made.children.items()
    }
    merchant.push(
        Message(reply(torch.zeros(SIZE), "update"), reply_to=message), tree=tree, objects=objects
    )


def _broken(merchant, message):
    part = b"ArrayRecord  7\x00garbage"
    merchant.push(
        Message(reply(torch.zeros(SIZE), "update"), reply_to=message),
        tree=ObjectTree(object_id=get_object_id(part)),
        objects={get_object_id(part): part},
    )


def _in_anothers_name(merchant, message):
    """Answer for the honest nodes, whose numbers and open messages it was told."""
    query = "SELECT message_id FROM message_ins WHERE dst_node_id = ?"
    with contextlib.closing(sqlite3.connect(merchant.federation.server / "state.db")) as state:
        for node in merchant.honest:
            signed = node - 2**64 if node >= 2**63 else node
            asked = [row[0] for row in state.execute(query, (signed,))]
            merchant.told.append(len(asked))
            for one in asked:
                made = Message(reply(torch.full((SIZE,), 5.0), "update"), reply_to=message)
                known = {"src_node_id": node, "reply_to_message_id": one}
                made.metadata.__dict__.update({f"_{k}": v for k, v in known.items()})
                with contextlib.suppress(httpx.HTTPStatusError):
                    merchant.push(made, **known)
                    merchant.taken.append(one)
    raise RuntimeError("all were tried")


def _to_anothers_message(merchant, message):
    """Say outside that it answers its own request, and inside that it answers another's."""
    made = Message(reply(torch.full((SIZE,), 5.0), "update"), reply_to=message)
    made.metadata.__dict__["_reply_to_message_id"] = "0" * 64
    merchant.push(made, reply_to_message_id=message.metadata.message_id)


def _again(merchant, message):
    """The reply of an earlier round, word for word, and then as an answer to this one's."""
    old = merchant.kept
    merchant.push(old, message_id=old.object_id)


def _many_parts(merchant, message):
    made = Message(reply(torch.zeros(SIZE), "update"), reply_to=message)
    # 10 GB in parts of 5 MB.
    children = [ObjectTree(object_id=f"{i:064x}") for i in range(2048)]
    merchant.push(made, tree=ObjectTree(object_id=made.object_id, children=children))


def _large_part(merchant, message):
    huge = b"ArrayChunk  31457280\x00" + bytes(30 * 2**20)
    name = get_object_id(huge)
    merchant.push(
        Message(reply(torch.zeros(SIZE), "update"), reply_to=message),
        tree=ObjectTree(object_id=name),
        objects={name: huge},
    )


def _twice(merchant, message):
    merchant.kept = merchant.push(Message(Error(100, "first"), reply_to=message))
    merchant.push(Message(reply(torch.full((SIZE,), 5.0), "update"), reply_to=message))


NOT_FINITE = "array is not a vector of finite float32 numbers."
ROUNDS = [
    # What it does, what the round says of it, and whether the SuperLink answers with 400.
    (_send(_array(np.full(SIZE, np.nan, np.float32))), NOT_FINITE, False),
    (_twice, "first", False),
    (_send(_array(np.zeros(SIZE + 1, np.float32))), "expected 7", False),
    (_send(_array(np.zeros(SIZE))), "one float32 vector", False),
    (_send(_array(np.zeros(2**18, np.float32))), "expected 7", False),
    (_send(_array(np.full(SIZE, 1e30, np.float32))), "update_norm_max", False),
    (_send(_lie()), "array cannot be read", False),
    (_send(_with_metrics()), "message holds", False),
    (_send(RecordDict({})), "message holds", False),
    (_not_a_message, "not a message", False),
    (_broken, "not a message", False),
    (_in_anothers_name, "gave up", True),
    (_to_anothers_message, "not a message", False),
    (_again, "gave up", False),
    (_many_parts, "gave up", True),
    (_large_part, "no reply in time", True),
    (lambda m, x: m.push(Message(Error(100, "\x1b[2J<b>"), reply_to=x)), "?[2J<b>", False),
    (lambda m, x: m.push(Message(Error(100, "x" * 10**6), reply_to=x)), "gave up", True),
]


@pytest.fixture(scope="module")
def finished(federation):
    """A run with one attack in each round; the run's folder, its records and the merchant."""
    merchant = HostileMerchant(federation)
    merchant.enrol()
    merchant.answers = dict(enumerate(act for act, *_ in ROUNDS))
    merchant.silent = frozenset({[act for act, *_ in ROUNDS].index(_large_part)})
    merchant.told, merchant.taken = [], []
    merchant.honest = [
        m["node"] for m in federation.status()["merchants"] if m["name"] != merchant.name
    ]
    run = federation.run_file(
        name="beside-hostile", nodes=3, quorum=0.6, rounds=len(ROUNDS), noise=30.0, deadline=45
    )
    with merchant:
        merchant.until_connected()
        said = federation.silotune("server", "run", federation.server, run, timeout=500)
    assert "finished" in said, said + federation.logs()
    folder = federation.server / "runs" / "beside-hostile"
    (status,) = [r for r in federation.status()["runs"] if r["name"] == "beside-hostile"]
    return folder, status, merchant


def test_every_attack_is_dropped_and_tallied_under_its_reason(finished):
    _, status, merchant = finished
    assert [r["replies"] for r in status["records"]] == [2] * len(ROUNDS)
    for record, (_, words, _) in zip(status["records"], ROUNDS, strict=True):
        (reason,) = record["reasons"]
        assert words in reason, (record["round"], reason)
        assert reason.isprintable()
    assert {round_ for round_, _ in merchant.trouble} == {
        number for number, (_, _, refused) in enumerate(ROUNDS) if refused
    }
    assert status["starts"] == 1
    # There were messages of others to answer, and no answer was taken.
    assert sum(merchant.told) > 0
    assert merchant.taken == []


def test_the_aggregate_is_that_of_the_honest_ones(finished, federation):
    folder, status, _ = finished
    kept = 0
    operator = Operator(federation, folder / "run.toml")
    before = operator.model.adapter()
    for record in status["records"]:
        number = record["round"]
        after = load_file(folder / "rounds" / f"round-{number:04d}.safetensors")["flat"]
        updates = [_released(silo, number) for silo in federation.silos]
        # A silo keeps its newest releases only.
        if all(u is not None for u in updates):
            total = torch.zeros(SIZE, dtype=torch.float64)
            for update in updates:
                total += update.double()
            assert torch.equal(after, before + (total / 2).float())
            kept += 1
        before = after
    assert kept >= 5


def _released(silo, number):
    for entry in Chain.read(silo / "ledger.db"):
        body = entry.body
        if entry.kind == "release" and (body["job"], body["round"]) == ("beside-hostile", number):
            path = silo / "ledger-releases" / f"{body['reservation']}.bin"
            if path.exists():
                return torch.from_numpy(np.frombuffer(path.read_bytes(), "<f4").copy())
    return None


def test_what_it_sent_is_nowhere_on_the_aggregator(finished, federation):
    folder, _, _ = finished
    assert "\x1b" not in (folder / "status.json").read_text()
    assert "\\u001b" not in (folder / "status.json").read_text()
    said = federation.silotune("server", "status", federation.server)
    assert "\x1b" not in said
    # 10 GB did not come in: the database is what small rounds make it.
    assert (federation.server / "state.db").stat().st_size < 200 * 2**20
    assert json.loads(federation.silotune("server", "status", federation.server, "--json"))
