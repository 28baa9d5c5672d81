"""A hostile operator of a real aggregator: whatever he asks is refused, and costs nothing."""

import contextlib
import io
import socket
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.fab import Fab

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows
from silotune.messages import request
from tests.deployment.hostile_server import Operator, ledger_bytes, reasons

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REFUSED = "refused: not a valid request"
CANARY = """
import os, pathlib, socket, subprocess
place = pathlib.Path({place!r})
def leave(name, make):
    try:
        (place / name).write_text(str(make()))
    except Exception as error:
        (place / name).write_text(repr(error))
leave("ran", lambda: os.getpid())
leave("environment", lambda: dict(os.environ))
leave("key", lambda: (pathlib.Path({silo!r}) / "node.key").read_text())
leave("rows", lambda: (pathlib.Path({silo!r}) / "events.parquet").read_bytes())
leave("shell", lambda: subprocess.run("id", shell=True, capture_output=True).stdout)
leave("network", lambda: socket.create_connection(("127.0.0.1", {port}), 5).sendall(b"here"))
app = None
"""


def _greet(ready, came):
    with contextlib.suppress(OSError):
        connection, address = ready.accept()
        came.append(address)
        connection.close()


def _bundle(code):
    """An app bundle that runs ``code`` wherever anything of it is imported, or unpacked."""
    content = io.BytesIO()
    project = '[project]\nname="x"\nversion="1.0.0"\ndescription=""\nlicense="Apache-2.0"\n'
    project += '[tool.flwr.app]\npublisher="x"\n[tool.flwr.app.components]\n'
    project += 'serverapp="app:app"\nclientapp="app:app"\n[tool.flwr.app.config]\nx="1"\n'
    names = ["app.py", "client/client_app.py", "silotune/__init__.py", "sitecustomize.py"]
    names += ["../../app.py", "/tmp/silotune-canary/app.py", "conftest.py"]
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pyproject.toml", project)
        for name in names:
            archive.writestr(name, code)
    return Fab("", content.getvalue(), {})


@pytest.fixture(scope="module")
def operator(federation):
    return Operator(federation)


@pytest.fixture
def untouched(federation):
    """Afterwards every ledger is what it was, byte for byte, and every process too."""

    def state():
        return [
            (ledger_bytes(s), [p["pid"] for p in federation.state(s).values()])
            for s in federation.silos
        ]

    before = state()
    yield
    assert state() == before


def _honest_round(federation, name):
    said = federation.silotune(
        "server", "run", federation.server, federation.run_file(name=name, rounds=1, noise=16.0)
    )
    assert "round 0: 2 updates, 0 failed" in said
    for silo in federation.silos:
        row = ledger_rows(Chain.read(silo / "ledger.db"))[-1]
        assert (row.job, row.round, row.outcome) == (name, 0, "settled")


def test_the_code_of_an_app_bundle_never_runs(federation, operator, untouched, tmp_path):
    place = tmp_path / "canary"
    place.mkdir()
    for folder in (place, *place.parents[:-2]):
        # Whoever ran it could leave its mark, the node's account too.
        folder.chmod(folder.stat().st_mode | (0o777 if folder == place else 0o055))
    came = []
    silo = federation.silos[0]
    with socket.create_server(("127.0.0.1", 0)) as ready:
        threading.Thread(target=_greet, args=(ready, came), daemon=True).start()
        code = CANARY.format(place=str(place), silo=str(silo), port=ready.getsockname()[1])
        content = request(operator.train(), operator.model.adapter())
        with operator.run(_bundle(code)) as sender:
            found = reasons(sender.ask(silo, {"honest": ("train", content)}))
        assert found == {"honest": REFUSED}
        assert list(place.iterdir()) == []
        assert came == []
        for folder in (silo, federation.root):
            assert not {p.name for p in folder.rglob("*.py")} & {"app.py", "sitecustomize.py"}
        assert "app bundle" in (silo / "silo.log").read_text()
        # The canary sings where it is run.
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert (place / "ran").exists()
        assert "PRIVATE KEY" in (place / "key").read_text()
        assert came


def _array(values):
    return ArrayRecord({"flat": Array(np.asarray(values))})


def _raw(adapter, text="{}"):
    return RecordDict({"adapter": adapter, "request": ConfigRecord({"json": text})})


def _cases(operator):
    """What is asked, (kind, content) by name, and the one reason that each is refused with."""
    job, start = operator.asked.job, operator.model.adapter()
    private = job.private
    metrics = operator.measure().metrics

    def train(**changes):
        return "train", request(operator.train(**changes), start)

    def measure(**changes):
        return "evaluate", request(operator.measure(**changes), start)

    flat, honest = start.numpy(), train()[1]["request"]["json"]
    good = _array(flat)
    lying = Array(dtype="float32", shape=(10**9,), stype="numpy.ndarray", data=b"x" * 50)
    pickled = Array(dtype="float32", shape=(7,), stype="numpy.ndarray", data=b"cos\nsystem\n")
    policy = "refused by the policy ({})"
    return {
        "less noise": (train(private=private | {"noise_multiplier": 0.1}), "noise_multiplier"),
        "more steps": (train(private=private | {"steps": 10**6}), "steps"),
        "another task": (train(task="churn"), "task"),
        "no noise": (train(private=None, plain={"epochs": 1.0}), "private"),
        "un-noised metrics": (measure(metrics=metrics | {"noise_multiplier": 1e-3}), "metrics"),
        "another base": (train(base_digest="0" * 64), REFUSED),
        "another layout": (train(layout_digest="0" * 64), REFUSED),
        "another model": (train(model="other"), REFUSED),
        "another protocol": (_protocol(train), REFUSED),
        "a request under another type": (("query", train()[1]), REFUSED),
        "zero noise": (train(private=private | {"noise_multiplier": 0.0}), REFUSED),
        "an unknown mechanism": (train(private=private | {"mechanism": "none"}), REFUSED),
        "not finite": (("train", request(operator.train(), start * float("nan"))), REFUSED),
        "another length": (("train", request(operator.train(), torch.zeros(8))), REFUSED),
        "another type": (("train", _raw(_array(flat.astype("float64")), honest)), REFUSED),
        "another shape": (("train", _raw(_array(flat[None]), honest)), REFUSED),
        "a lying shape": (("train", _raw(ArrayRecord({"flat": lying}), honest)), REFUSED),
        "a pickle": (("train", _raw(ArrayRecord({"flat": pickled}), honest)), REFUSED),
        "two arrays": (
            ("train", _raw(ArrayRecord({"a": Array(flat), "b": Array(flat)}), honest)),
            REFUSED,
        ),
        "no array": (("train", RecordDict({"request": ConfigRecord({"json": "{}"})})), REFUSED),
        "not JSON": (("train", _raw(good, "{")), REFUSED),
        "deep JSON": (("train", _raw(good, "[" * 9000)), REFUSED),
        "long JSON": (("train", _raw(good, " " * 20_000)), REFUSED),
        "1 MB": (("train", _raw(_array(np.zeros(2**18, np.float32)), honest)), REFUSED),
    }, policy


def _protocol(train):
    kind, content = train()
    text = content["request"]["json"].replace('"protocol": 1', '"protocol": 2')
    return kind, _raw(content["adapter"], text)


def test_what_is_outside_the_policy_or_malformed_is_refused(federation, operator, untouched):
    cases, policy = _cases(operator)
    expected = {n: r if r == REFUSED else policy.format(r) for n, (_, r) in cases.items()}
    with operator.run() as sender:
        replies = sender.ask(federation.silos[0], {n: c for n, (c, _) in cases.items()}, 300)
    assert reasons(replies) == expected


def test_a_round_that_comes_again_or_late_costs_nothing(federation, operator):
    silo, start = federation.silos[0], operator.model.adapter()
    private = operator.asked.job.private | {"noise_multiplier": 16.0}

    def train(round_, adapter, **changes):
        what = operator.train(job="replayed", round=round_, private=private | changes)
        return "train", request(what, adapter)

    with operator.run() as sender:
        first = sender.ask(silo, {"1": train(1, start), "2": train(2, start + 1)})
        assert reasons(first) == {"1": "answered", "2": "answered"}
        before = ledger_bytes(silo)
        replayed = {
            "a round before": train(0, start),
            "that one with another adapter": train(1, start + 2),
            "the newest with another adapter": train(2, start + 2),
            "the newest with another number": train(2, start + 1, learning_rate=0.25),
        }
        again = "refused by the policy (round)"
        assert reasons(sender.ask(silo, replayed)) == dict.fromkeys(replayed, again)
        assert ledger_bytes(silo) == before
        # Byte for byte the same: the stored release, at no cost.
        same = sender.ask(silo, {"1": train(1, start), "2": train(2, start + 1)})
        for name, reply in same.items():
            assert _numbers(reply) == _numbers(first[name])
        rows = ledger_rows(Chain.read(silo / "ledger.db"))
        assert [r.round for r in rows if r.job == "replayed"] == [1, 2]


def _numbers(reply):
    return reply.content["update"]["flat"].data


def test_a_round_of_honest_ones_goes_on_after_all_that(federation, operator):
    _honest_round(federation, "after-hostile-operator")
