"""The doctors: each thing is broken for real, and the line that says so is the one that fails."""

import contextlib
import datetime as dt
import json
import os
import shutil
import socket
import ssl
import threading
import time
from email.utils import format_datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from client.doctor import client_findings
from client.setup import write_new
from privacy.accounting import GaussianEvent
from privacy.ledger import Ledger
from server import certificates
from server.certificates import make_server_certificate
from server.doctor import server_findings
from server.setup import init
from silotune import doctor
from silotune.cli import main
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.toml_text import toml_text


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def states(findings):
    return {f.name: f.state for f in findings}


def said(findings, name):
    (one,) = [f for f in findings if f.name == name]
    return f"{one.found} {one.remedy}"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "aggregator"
    init(folder, name="here", address=f"127.0.0.1:{free_port()}", listen="127.0.0.1")
    return folder


def test_a_new_aggregator_is_well(server, capsys):
    found = states(server_findings(server))
    assert found.pop("processes") == "warn"
    assert set(found.values()) == {"ok"}, server_findings(server)
    assert main(["server", "doctor", str(server)]) == 0
    assert "certificate" in capsys.readouterr().out
    assert main(["server", "doctor", str(server), "--json"]) == 0
    assert {f["name"] for f in json.loads(capsys.readouterr().out)} == {*found, "processes"}


def only_fails(server, *names):
    found = server_findings(server)
    assert {f.name for f in found if f.state == "fail"} == set(names), found
    assert main(["server", "doctor", str(server)]) == 1
    return found


def test_certificates_that_are_over_early_or_of_someone_else(server, monkeypatch):
    def again(days, **changes):
        monkeypatch.setattr(certificates, "_SERVER_DAYS", days)
        monkeypatch.setattr(certificates, "_CLOCKS", dt.timedelta(days=changes.get("since", 3)))
        make_server_certificate(server, "here", [changes.get("host", "127.0.0.1")])

    again(-1)
    assert "expired" in said(only_fails(server, "certificate", "invitation"), "certificate")
    again(10)
    found = server_findings(server)
    assert states(found)["certificate"] == "warn"
    assert "9 days left" in said(found, "certificate")
    # Merchants pin the one that it had.
    assert "pins another certificate" in said(only_fails(server, "invitation"), "invitation")
    again(397, host="10.0.0.1")
    assert "is not for 127.0.0.1" in said(
        only_fails(server, "certificate", "invitation"), "certificate"
    )
    again(397, since=-2)
    assert "not yet valid" in said(only_fails(server, "certificate", "invitation"), "certificate")


def test_a_key_or_authority_that_does_not_belong(server, tmp_path):
    other = tmp_path / "other"
    init(other, name="other", address="127.0.0.1:1", listen="127.0.0.1")
    kept = (server / "server.key").read_bytes()
    shutil.copy(other / "server.key", server / "server.key")
    assert "is not the key" in said(only_fails(server, "certificate"), "certificate")
    (server / "server.key").write_bytes(kept)
    shutil.copy(other / "ca.crt", server / "ca.crt")
    assert "did not sign" in said(only_fails(server, "authority"), "authority")
    (server / "ca.crt").write_text("nothing")
    only_fails(server, "authority")
    (server / "server.crt").unlink()
    only_fails(server, "authority", "certificate", "invitation")


def test_a_port_that_is_taken_and_one_that_is_open_to_the_world(server):
    port = int((server / "server.toml").read_text().split("port = ")[1].split()[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert "in use" in said(only_fails(server, "listener"), "listener")
    text = (server / "server.toml").read_text()
    (server / "server.toml").write_text(
        text.replace(
            'host = "127.0.0.1"\nport = 0\nexpose = false', 'host = "0.0.0.0"\nexpose = true'
        )
    )
    found = server_findings(server)
    assert states(found)["metrics"] == "warn", (server / "server.toml").read_text()
    (server / "server.toml").write_text("name = 1")
    assert main(["server", "doctor", str(server)]) == 2


def test_files_that_others_can_read_and_a_clock_that_is_behind(server):
    for name, mode in (("server.key", 0o640), ("ca.key", 0o604), ("superexec.secret", 0o666)):
        (server / name).chmod(mode)
        assert f"chmod 600 {server / name}" in said(
            only_fails(server, "permissions"), "permissions"
        )
        (server / name).chmod(0o600)
    server.chmod(0o755)
    assert f"chmod 700 {server}" in said(only_fails(server, "permissions"), "permissions")
    server.chmod(0o700)
    os.utime(server / "ca.crt", (time.time() + 900,) * 2)
    assert "Set the clock" in said(only_fails(server, "clock"), "clock")


def test_a_disk_that_is_full_and_libraries_of_another_version(server, monkeypatch):
    usage = shutil.disk_usage(server)
    for free, state in ((10 * 2**20, "fail"), (2**30, "warn"), (2**33, "ok")):
        monkeypatch.setattr(
            doctor.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free)
        )
        assert doctor.check_disk(server).state == state
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_PINNED", {"flwr": "1.99."})
    assert "pip install 'flwr==1.99.*'" in said(only_fails(server, "versions"), "versions")
    monkeypatch.setattr(doctor, "_PINNED", {"flwr-of-nobody": "1."})
    only_fails(server, "versions")


class Listener(threading.Thread):
    """The aggregator's listener as far as a node's first look sees it."""

    def __init__(self, server, port):
        super().__init__(daemon=True)
        self.ahead = 0.0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server / "server.crt", server / "server.key")
        self._listening = socket.create_server(("127.0.0.1", port))

    def run(self):
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(raw, True) as sealed:
                if sealed.recv(4096):
                    now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.ahead)
                    date = format_datetime(now, usegmt=True)
                    head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n"
                    sealed.sendall(head.encode())

    def stop(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.join(10)


@pytest.fixture
def silo(server, tmp_path):
    """A merchant of `server`, which answers; made without a model."""
    import tomllib

    generate(SyntheticConfig(merchants=1, users_per_merchant=20), tmp_path / "silos")
    (folder,) = (tmp_path / "silos").iterdir()
    invited = tomllib.loads((server / "invitation.toml").read_text())
    (folder / "client.toml").write_text(
        toml_text({"node_user": "daemon", "server": invited, "task": {}, "model": {}})
    )
    (folder / "policy.toml").write_text(
        'epsilon = 8.0\ndelta = 1e-5\nbase_digests = ["none"]\n'
        f'servers = ["sha256:{invited["certificate_sha256"]}"]\n'
    )
    from client.setup import _new_key

    write_new(folder / "node.key", _new_key())
    write_new(folder / "superexec.secret", os.urandom(32))
    listener = Listener(server, int(invited["address"].rpartition(":")[2]))
    listener.start()
    yield folder, listener
    listener.stop()


def ill(folder, *names):
    found = client_findings(folder)
    assert {f.name for f in found if f.state == "fail"} == set(names), found
    return found


def test_a_new_silo_is_well_and_each_thing_that_is_wrong_has_its_line(silo, capsys):
    folder, listener = silo
    found = states(ill(folder))
    assert found.pop("processes") == "warn"
    assert set(found.values()) == {"ok"}, client_findings(folder)
    assert main(["client", "doctor", str(folder)]) == 0
    capsys.readouterr()

    listener.ahead = 400.0
    assert "behind the aggregator's" in said(ill(folder, "aggregator"), "aggregator")
    listener.ahead = 0.0

    policy = (folder / "policy.toml").read_text()
    (folder / "policy.toml").write_text(policy.replace("epsilon = 8.0", "epsilon = 0"))
    assert "epsilon is 0" in said(ill(folder, "policy"), "policy")
    (folder / "policy.toml").write_text(policy + "seeded_noise = true\n")
    ill(folder, "policy")
    (folder / "policy.toml").write_text(policy.replace("sha256:", "sha256:0"))
    assert "does not list the aggregator" in said(ill(folder, "policy"), "policy")
    (folder / "policy.toml").write_text(policy)
    (folder / "policy.toml").chmod(0o666)
    ill(folder, "permissions")
    (folder / "policy.toml").chmod(0o600)
    for file in (folder / "user.key", folder / "events.parquet"):
        file.chmod(0o644)
        assert f"chmod 600 {file}" in said(ill(folder, "permissions"), "permissions")
        file.chmod(0o600)

    (folder / "superexec.secret").write_bytes(b"x")
    ill(folder, "node key")
    (folder / "superexec.secret").write_bytes(os.urandom(32))
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    kept = (folder / "node.key").read_bytes()
    (folder / "node.key").write_bytes(pem)
    ill(folder, "node key")
    (folder / "node.key").unlink()
    ill(folder, "node key")
    (folder / "node.key").write_bytes(kept)
    (folder / "node.key").chmod(0o600)

    events = (folder / "silo.toml").read_bytes()
    (folder / "silo.toml").write_text("nothing")
    ill(folder, "tables")
    (folder / "silo.toml").write_bytes(events)
    ill(folder)


def test_a_ledger_that_was_changed_lost_or_is_held_by_the_daemon(silo):
    folder, _ = silo
    event = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=1)
    with Ledger(folder / "ledger.db") as ledger:
        ledger.reserve("a", [event], {"job": "j"}, epsilon=8.0, delta=1e-5)
    assert "spent" in said(ill(folder), "ledger")
    raw = (folder / "ledger.db").read_bytes()
    assert raw.count(b'"steps":1') == 1
    (folder / "ledger.db").write_bytes(raw.replace(b'"steps":1', b'"steps":0'))
    assert "was changed" in said(ill(folder, "ledger"), "ledger")
    (folder / "ledger.db").unlink()
    assert "is missing" in said(ill(folder, "ledger"), "ledger")


def test_an_aggregator_that_is_away_or_shows_another_certificate(silo, server):
    folder, listener = silo
    make_server_certificate(server, "here", ["127.0.0.1"])
    listener._context.load_cert_chain(server / "server.crt", server / "server.key")
    assert "another certificate" in said(ill(folder, "aggregator"), "aggregator")
    listener.stop()
    try:
        assert "cannot be reached" in said(ill(folder, "aggregator"), "aggregator")
    finally:
        listener._listening = socket.create_server(("127.0.0.1", 0))


def test_an_account_that_does_not_exist_or_has_all_rights(silo):
    folder, _ = silo
    text = (folder / "client.toml").read_text()
    if os.geteuid() != 0:
        pytest.skip("the node's account matters where started as root")
    for user, state in (("nobody-at-all", "fail"), ("root", "fail"), ("nobody", "warn")):
        changed = text.replace('node_user = "daemon"', f'node_user = "{user}"')
        (folder / "client.toml").write_text(changed)
        assert states(client_findings(folder))["account"] == state
