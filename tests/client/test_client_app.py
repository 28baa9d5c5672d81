from dataclasses import asdict, replace

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import client.client_app
import client.door
import silotune.errors
from client.client_app import app
from client.refusals import WORDS, note, refusal
from silotune.errors import PolicyError, SilotuneError
from silotune.federation import build_model, read_federation
from silotune.messages import MetricsRequest, TrainRequest, read_reply, request
from simulations.inline_engine import InlineGrid

SECRET = "user 4711 bought item 8"
METRICS = {"noise_multiplier": 8.0, "bins": 10, "examples_per_user": 8}
ERRORS = [
    getattr(silotune.errors, name) for name in silotune.errors.__all__ if name != "SilotuneError"
]


@pytest.fixture(scope="module")
def agreed(small_federation, tmp_path_factory):
    """A federation file with one private job, its request, and the model it is about."""
    folder = tmp_path_factory.mktemp("agreed")
    path = small_federation(folder, "private", noise_seed=1)
    federation = read_federation(path)
    job = replace(federation.jobs[0], model="numeric", metrics=METRICS)
    replace(federation, jobs=(job,)).save(path)
    model = build_model(federation.models, job.model, federation.task)
    what = TrainRequest(
        job=job.name,
        round=0,
        task=federation.task.name,
        model=job.model,
        base_digest=model.base_digest,
        layout_digest=model.layout.digest,
        private=job.private,
    )
    InlineGrid(1, path)
    return path, what, model


def _measure(what):
    """The request for metrics that goes with a request to train."""
    common = {k: v for k, v in asdict(what).items() if k not in ("private", "plain", "encoding")}
    return MetricsRequest(**common, metrics=METRICS)


@pytest.fixture
def send(agreed):
    """A function that sends a request to the first silo; returns its reply and its context."""
    path, what, model = agreed

    def send(kind="train", ask=None, **changes):
        context = Context(1, 1, {"partition-id": 0}, RecordDict(), {"federation": str(path)})
        ask = ask or (what if kind == "train" else _measure(what))
        content = request(replace(ask, **changes), model.adapter())
        message = Message(content, dst_node_id=1, message_type=kind)
        return app(message, context), context

    return send


def test_a_reply_is_one_array_and_leaves_no_state_behind(send, agreed):
    model = agreed[2]
    reply, context = send()
    assert not reply.has_error()
    assert read_reply(reply.content, model.layout.size, "update").shape == (model.layout.size,)
    assert len(context.state) == 0


def test_metrics_leave_as_one_noised_vector_that_a_repeated_request_gets_again(send):
    replies = [send("evaluate") for _ in range(2)]
    first, again = (read_reply(r.content, 20, "metrics") for r, _ in replies)
    assert torch.equal(first, again)
    assert all(len(context.state) == 0 for _, context in replies)


def test_a_request_under_the_other_message_type_is_refused(send, agreed):
    for kind, ask in (("train", _measure(agreed[1])), ("evaluate", agreed[1])):
        reply, _ = send(kind, ask)
        assert reply.error.reason == "refused: not a valid request"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_job_that_the_silo_does_not_have_is_refused(send, kind):
    assert send(kind, job="other")[0].error.reason == "refused: not a valid request"
    assert send(kind, model="text")[0].error.reason == "refused: not a valid request"


def test_metrics_outside_the_policy_are_answered_with_the_limits_names(send):
    reply, _ = send("evaluate", task="other", metrics=METRICS | {"noise_multiplier": 1.0})
    assert reply.error.reason == "refused by the policy (metrics, task)"
    reply, _ = send("evaluate", metrics=METRICS | {"errors": 1.0})
    assert reply.error.reason == "refused by the policy (metrics)"


@pytest.mark.parametrize("message_type", ["train", "evaluate"])
@pytest.mark.parametrize(
    "place",
    [(client.door, "read_request"), (client.door, "reply"), (client.client_app, "_worker")],
    ids=lambda p: p[1],
)
@pytest.mark.parametrize("kind", [*ERRORS, KeyError, MemoryError, AssertionError, OSError])
def test_no_word_of_an_exception_reaches_the_aggregator(
    send, tmp_path, monkeypatch, place, kind, message_type
):
    def fail(*_):
        raise kind(SECRET)

    monkeypatch.setattr(*place, fail)
    monkeypatch.chdir(tmp_path)
    reply, _ = send(message_type)
    assert reply.error.reason in WORDS
    assert SECRET not in str(reply.error)
    assert SECRET not in str(reply.metadata)


def test_words_of_an_error_that_was_not_raised_on_purpose_stay_out_of_the_log(tmp_path):
    log = tmp_path / "silo.log"
    for error in (KeyError(SECRET), ValueError(SECRET), silotune.errors.DataError(SECRET)):
        note(error, log)
    note(PolicyError("clip_norm: 9 is not <= 1"), log)
    text = log.read_text()
    assert SECRET not in text
    assert text.count("(words left out)") == 3
    assert "clip_norm: 9 is not <= 1" in text


def test_a_request_outside_the_policy_is_answered_with_the_limits_names(send, agreed):
    wide = agreed[1].private | {"noise_multiplier": 1e-3, "steps": 10**6}
    reply, _ = send(task="other", private=wide)
    assert reply.error.reason == "refused by the policy (noise_multiplier, steps, task)"


@given(st.sampled_from(ERRORS), st.text(), st.lists(st.text(), max_size=3))
def test_a_refusal_is_of_a_fixed_set_whatever_the_error_carries(kind, text, limits):
    error = kind(text)
    if isinstance(error, PolicyError):
        error.limits = tuple(limits)
    words = refusal(error)
    assert any(words == w or words.startswith(f"{w} (") for w in WORDS)
    assert isinstance(error, SilotuneError)


def test_an_error_of_python_itself_is_only_a_failure():
    assert refusal(RuntimeError(SECRET)) == "failed; the silo's log says why"
