"""Real processes: TLS, node keys, separate executors, as the commands start them."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _rows(silo, job=None):
    rows = ledger_rows(Chain.read(silo / "ledger.db"))
    return [r for r in rows if job in (None, r.job)]


def test_three_rounds_train_and_every_ledger_has_what_they_cost(federation):
    said = federation.silotune("server", "run", federation.server, federation.run_file())
    assert "run 'promotions' finished" in said
    for number in range(3):
        assert f"round {number}: 2 updates, 0 failed" in said
    for silo in federation.silos:
        rows = _rows(silo, "promotions")
        assert [r.round for r in rows] == [0, 1, 2]
        assert {r.outcome for r in rows} == {"settled"}
    found = federation.status()
    assert {m["status"] for m in found["merchants"]} == {"online"}
    assert found["runs"][0]["rounds_done"] == 3


def test_a_request_outside_the_policy_costs_nothing_and_the_silo_stays_up(federation):
    before = [len(_rows(s)) for s in federation.silos]
    loud = federation.run_file(name="loud", noise=0.1, rounds=1)
    said = federation.silotune("server", "run", federation.server, loud, fails=True)
    assert "2 × refused by the policy (noise_multiplier)" in said
    assert [len(_rows(s)) for s in federation.silos] == before
    for silo in federation.silos:
        assert "noise_multiplier" in (silo / "silo.log").read_text()


def test_a_second_daemon_on_a_folder_refuses(federation):
    silo = federation.silos[0]
    assert "is running already" in federation.silotune("client", "start", silo, fails=True)
    # One that goes past the supervisor meets the lock of the one that runs.
    said = _alone("client.daemon", silo)
    assert "another process" in said


def test_from_outside_there_is_no_way_but_the_merchants(federation):
    address = ("127.0.0.1", federation.port)
    with socket.create_connection(address, 20) as plain:
        plain.settimeout(20)
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not _received(plain).startswith(b"HTTP/1.1 2")
    context = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    for method, path, wanted in (
        ("GET", "/health", b"200"),
        ("POST", "/v1/control/list-nodes", b"404"),
        ("POST", "/v1/control/start-run", b"404"),
        ("POST", "/v1/runtime/acquire-task", b"404"),
        ("POST", "/v1/fleet/register-node", b"404"),
        ("POST", "/v1/fleet/../control/list-nodes", b"404"),
        ("GET", "/docs", b"404"),
        # No node: its signature is missing.
        ("POST", "/v1/fleet/pull-messages", b"401"),
    ):
        with (
            socket.create_connection(address, 20) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as sealed,
        ):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
            sealed.sendall(
                (head + "Content-Type: application/protobuf\r\nConnection: close\r\n\r\n").encode()
            )
            assert _received(sealed).split(b" ")[1] == wanted, path


def _received(connection):
    parts = []
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except (ConnectionError, TimeoutError, ssl.SSLError):
        pass
    return b"".join(parts)


def _alone(module, folder, timeout=60):
    """Run one process of a merchant without its supervisor; return what it said."""
    # Its standard input must stay open: its end is the end of the supervisor.
    inside, outside = os.pipe()
    out = folder / "alone.log"
    with out.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=inside,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        os.close(inside)
        os.close(outside)
    said = out.read_text()
    out.unlink()
    return said


@pytest.fixture
def stranger(federation, tmp_path):
    """A merchant's folder with what a node reads: of the first silo, with another key."""
    silo = federation.silos[0]
    for name in ("client.toml", "superexec.secret"):
        shutil.copy(silo / name, tmp_path / name)
    from client.setup import _new_key

    (tmp_path / "node.key").write_bytes(_new_key())
    (tmp_path / "run").mkdir()
    return tmp_path


def test_a_key_that_is_not_enrolled_is_refused(stranger):
    said = _alone("client.node", stranger)
    # Flower's code of a connection that could not be made; its words are not logged.
    assert "Exit Code: 305" in said
    assert not (stranger / "run" / "node.ready").read_text()


def test_another_certificate_of_the_same_authority_is_refused(stranger, federation):
    text = (stranger / "client.toml").read_text()
    (line,) = [x for x in text.splitlines() if x.startswith("certificate_sha256")]
    (stranger / "client.toml").write_text(text.replace(line, f'certificate_sha256 = "{"0" * 64}"'))
    shutil.copy(federation.silos[0] / "node.key", stranger / "node.key")
    # Its own key is enrolled; only the certificate differs. It waits for the right one for ever.
    assert "SuperNode ID" not in _alone("client.node", stranger, timeout=20)
    assert not (stranger / "run" / "node.ready").read_text()


def test_the_node_runs_without_rights_and_without_torch(federation):
    pid = federation.state(federation.silos[0])["node"]["pid"]
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "torch" not in maps
    if os.geteuid() == 0:
        assert Path(f"/proc/{pid}").stat().st_uid != 0
    supervisor = json.loads((federation.silos[0] / "run" / "state.json").read_text())["pid"]
    assert "torch" not in Path(f"/proc/{supervisor}/maps").read_text()


def test_no_log_of_a_merchant_holds_a_row(federation):
    import pyarrow.parquet as pq

    for silo in federation.silos:
        users = pq.read_table(silo / "events.parquet", columns=["user_id"])
        some = {str(u) for u in users["user_id"].to_pylist()}
        for log in [*silo.glob("logs/*"), silo / "silo.log"]:
            text = log.read_text() if log.exists() else ""
            assert not any(user in text for user in some)


@pytest.mark.parametrize(
    ("side", "name"),
    [("server", "executor"), ("server", "superlink"), ("client", "node"), ("client", "daemon")],
)
@pytest.mark.long
def test_a_run_outlives_the_kill_of_any_process(federation, side, name):
    before = {s: len(_rows(s)) for s in federation.silos}
    run = federation.run_file(name=f"kill-{name}", rounds=4, noise=4.0, deadline=60, quorum=0.5)
    federation.silotune("server", "run", federation.server, run, "--detach")
    store = federation.server / "runs" / f"kill-{name}" / "rounds"
    until = time.monotonic() + 200
    while not (store / "round-0000.safetensors").exists():
        assert time.monotonic() < until, federation.logs()
        time.sleep(0.05)
    folder = federation.server if side == "server" else federation.silos[0]
    killed = federation.kill(folder, name)
    federation.until_ready(folder, name, killed)
    until = time.monotonic() + 400
    while True:
        (found,) = [r for r in federation.status()["runs"] if r["name"] == f"kill-{name}"]
        if found["state"] not in ("waiting", "running"):
            break
        assert time.monotonic() < until, federation.logs()
        time.sleep(0.5)
    assert found["state"] == "finished", found["message"] + federation.logs()
    assert [r["round"] for r in found["records"]] == [0, 1, 2, 3]
    federation.until_online(2)
    for silo in federation.silos:
        rows = _rows(silo)[before[silo] :]
        rounds = [r.round for r in rows]
        released = [r.round for r in rows if r.bytes]
        # No round is released twice; at most the one in hand was paid for once more.
        assert len(set(released)) == len(released)
        assert len(rounds) - len(set(rounds)) <= 1
