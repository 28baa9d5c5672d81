import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from silotune.encoding import encode
from silotune.errors import MessageError
from silotune.messages import (
    MetricsRequest,
    TrainRequest,
    read_reply,
    read_request,
    reply,
    request,
)

ASK = TrainRequest(
    job="a",
    round=0,
    task="t",
    model="text",
    base_digest="b",
    layout_digest="c",
    private={"steps": 1},
)
MEASURE = MetricsRequest(
    job="a",
    round=0,
    task="t",
    model="text",
    base_digest="b",
    layout_digest="c",
    metrics={"noise_multiplier": 8.0, "bins": 10},
)


@pytest.mark.parametrize(("ask", "name"), [(ASK, "update"), (MEASURE, "metrics")])
def test_request_and_reply_survive_the_journey(ask, name):
    adapter = torch.arange(5, dtype=torch.float32)
    what, vector = read_request(request(ask, adapter), type(ask))
    assert what == ask
    assert torch.equal(vector, adapter)
    assert torch.equal(read_reply(reply(adapter, name), 5, name), adapter)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_encoded_release_survives_the_journey_and_no_other_length_does(encoding):
    values = np.arange(200, dtype=np.float32)
    sent = np.frombuffer(encode(values, encoding, np.random.default_rng(0)), np.uint8)
    content = reply(torch.from_numpy(sent.copy()), "update")
    found = read_reply(content, 200, "update", encoding)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), values, atol=2)
    for size in (199, 201):
        with pytest.raises(MessageError):
            read_reply(content, size, "update", encoding)
    # Neither is read as the other.
    with pytest.raises(MessageError, match="one float32 vector"):
        read_reply(content, len(sent), "update")
    with pytest.raises(MessageError, match="one uint8 vector"):
        read_reply(reply(torch.zeros(200), "update"), 200, "update", encoding)


@pytest.mark.parametrize(("ask", "kind"), [(ASK, MetricsRequest), (MEASURE, TrainRequest)])
def test_a_request_of_the_other_kind_is_refused(ask, kind):
    with pytest.raises(MessageError, match="unknown key"):
        read_request(request(ask, torch.zeros(3)), kind)


def test_a_release_of_the_other_name_is_refused():
    for name, other in (("update", "metrics"), ("metrics", "update")):
        with pytest.raises(MessageError, match="must hold"):
            read_reply(reply(torch.zeros(3), name), 3, other)


@pytest.mark.parametrize("name", ["update", "metrics"])
def test_a_reply_carries_one_array_and_nothing_else(name):
    content = reply(torch.zeros(3), name)
    assert set(content) == {name}
    assert set(content[name]) == {"flat"}
    assert content.metric_records == {}
    assert content.config_records == {}


def _array(values):
    return ArrayRecord({"flat": Array(np.asarray(values))})


@pytest.mark.parametrize("name", ["update", "metrics"])
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
def test_a_malformed_release_is_refused(record, name):
    with pytest.raises(MessageError):
        read_reply(RecordDict({name: record}), 3, name)


def test_an_array_that_says_another_shape_than_its_bytes_is_refused():
    honest = Array(np.zeros(64, np.float32))
    lying = Array(dtype="float32", shape=(60,), stype=honest.stype, data=honest.data)
    with pytest.raises(MessageError):
        read_reply(RecordDict({"update": ArrayRecord({"flat": lying})}), 60, "update")


def test_a_metric_beside_the_update_is_refused():
    content = reply(torch.zeros(3), "update")
    content["metrics"] = MetricRecord({"loss": 0.5})
    with pytest.raises(MessageError, match="metrics"):
        read_reply(content, 3, "update")


@pytest.mark.parametrize("kind", [TrainRequest, MetricsRequest])
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
def test_a_malformed_request_is_refused_in_words(text, words, kind):
    content = RecordDict(
        {"adapter": _array(np.zeros(3, np.float32)), "request": ConfigRecord({"json": text})}
    )
    with pytest.raises(MessageError, match=words):
        read_request(content, kind)


@pytest.mark.parametrize(
    "change", [{"protocol": 2}, {"round": -1}, {"plain": {"epochs": 1.0}}, {"private": None}]
)
def test_an_impossible_request_is_refused(change):
    _refused(asdict(ASK) | change, TrainRequest, "|".join(change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": 2}, "protocol"),
        ({"round": -1}, "round"),
        ({"metrics": None}, "metrics"),
        ({"metrics": {"bins": [1]}}, "bins"),
        ({"metrics": {"bins": {}}}, "bins"),
        ({"rows": True}, "unknown key 'rows'"),
    ],
)
def test_an_impossible_request_for_metrics_is_refused(change, words):
    _refused(asdict(MEASURE) | change, MetricsRequest, words)


@pytest.mark.parametrize("name", ["job", "task", "model", "base_digest", "layout_digest"])
@pytest.mark.parametrize("text", ["a\ud800", "\x1b[2J", "a\nb", "a\0", "\u202ea"])
@pytest.mark.parametrize("ask", [ASK, MEASURE])
def test_a_name_that_no_ledger_could_show_is_refused(ask, name, text):
    _refused(asdict(ask) | {name: text}, type(ask), name)


def _refused(raw, kind, words):
    content = RecordDict(
        {
            "adapter": _array(np.zeros(3, np.float32)),
            "request": ConfigRecord({"json": json.dumps(raw)}),
        }
    )
    with pytest.raises(MessageError, match=words):
        read_request(content, kind)
