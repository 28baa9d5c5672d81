import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from silotune.errors import MessageError
from silotune.messages import TrainRequest, read_reply, read_request, reply, request

ASK = TrainRequest(
    job="a",
    round=0,
    task="t",
    model="text",
    base_digest="b",
    layout_digest="c",
    private={"steps": 1},
)


def test_request_and_reply_survive_the_journey():
    adapter = torch.arange(5, dtype=torch.float32)
    what, vector = read_request(request(ASK, adapter))
    assert what == ASK
    assert torch.equal(vector, adapter)
    assert torch.equal(read_reply(reply(adapter), 5), adapter)


def test_a_reply_carries_one_array_and_nothing_else():
    content = reply(torch.zeros(3))
    assert set(content) == {"update"}
    assert set(content["update"]) == {"flat"}
    assert content.metric_records == {}
    assert content.config_records == {}


def _array(values):
    return ArrayRecord({"flat": Array(np.asarray(values))})


@pytest.mark.parametrize(
    "record",
    [
        _array(np.zeros(3, np.float64)),
        _array(np.zeros((3, 1), np.float32)),
        _array(np.array([0, np.nan, 1], np.float32)),
        _array(np.array([0, np.inf, 1], np.float32)),
        _array(np.zeros(4, np.float32)),
        ArrayRecord({"other": Array(np.zeros(3, np.float32))}),
        ArrayRecord({}),
        ConfigRecord({"flat": 1}),
        ArrayRecord({"flat": Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"x")}),
        ArrayRecord(
            {"flat": Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"x" * 9999)}
        ),
    ],
)
def test_a_malformed_update_is_refused(record):
    with pytest.raises(MessageError):
        read_reply(RecordDict({"update": record}), 3)


def test_an_array_that_says_another_shape_than_its_bytes_is_refused():
    honest = Array(np.zeros(64, np.float32))
    lying = Array(dtype="float32", shape=(60,), stype=honest.stype, data=honest.data)
    with pytest.raises(MessageError):
        read_reply(RecordDict({"update": ArrayRecord({"flat": lying})}), 60)


def test_a_metric_beside_the_update_is_refused():
    content = reply(torch.zeros(3))
    content["metrics"] = MetricRecord({"loss": 0.5})
    with pytest.raises(MessageError, match="metrics"):
        read_reply(content, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "missing"),
        ("[" * 9000, "not JSON"),
        ("x" * 20000, "at most"),
        (json.dumps({"job": "a", "rounds": 1}), "did you mean 'round'"),
    ],
)
def test_a_malformed_request_is_refused_in_words(text, words):
    content = RecordDict(
        {"adapter": _array(np.zeros(3, np.float32)), "request": ConfigRecord({"json": text})}
    )
    with pytest.raises(MessageError, match=words):
        read_request(content)


@pytest.mark.parametrize(
    "change", [{"protocol": 2}, {"round": -1}, {"plain": {"epochs": 1.0}}, {"private": None}]
)
def test_an_impossible_request_is_refused(change):
    raw = {
        "job": "a",
        "round": 0,
        "model": "m",
        "base_digest": "b",
        "layout_digest": "c",
        "private": {"steps": 1},
    } | change
    content = RecordDict(
        {
            "adapter": _array(np.zeros(3, np.float32)),
            "request": ConfigRecord({"json": json.dumps(raw)}),
        }
    )
    with pytest.raises(MessageError):
        read_request(content)
