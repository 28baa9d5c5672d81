"""The node's connection: one certificate, and no other of the same authority."""

import socket
import ssl
import threading

import httpx
import pytest
from flwr.supernode import start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.flower_node import pinned_context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with an authority and two server certificates of it, for this machine."""
    from server.certificates import make_authority, make_server_certificate

    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder, "test")
    for name in ("second", "first"):
        make_server_certificate(folder, name, ["127.0.0.1", "localhost"])
        for end in ("crt", "key"):
            (folder / f"server.{end}").replace(folder / f"{name}.{end}")
    return folder


@pytest.fixture
def listening(authority):
    """A function that listens with a certificate; returns the port."""
    open_ = []

    def listen(name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / f"{name}.crt", authority / f"{name}.key")
        ready = socket.create_server(("0.0.0.0", 0))
        open_.append(ready)

        def answer():
            while True:
                try:
                    raw, _ = ready.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(raw, server_side=True) as sealed:
                        sealed.recv(4096)
                        sealed.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                except (OSError, ssl.SSLError):
                    pass

        threading.Thread(target=answer, daemon=True).start()
        return ready.getsockname()[1]

    yield listen
    for one in open_:
        one.close()


def _pin(authority, name):
    from server.certificates import certificate_sha256

    return certificate_sha256(authority / f"{name}.crt")


def _get(context, port, host="127.0.0.1"):
    with httpx.Client(verify=context, timeout=10) as client:
        return client.get(f"https://{host}:{port}/").status_code


def test_the_pinned_certificate_and_no_other_of_the_authority(authority, listening):
    context = pinned_context((authority / "ca.crt").read_text(), _pin(authority, "first"))
    assert _get(context, listening("first")) == 200
    with pytest.raises(httpx.ConnectError, match="pinned"):
        _get(context, listening("second"))


def test_the_pin_alone_is_not_enough(authority, listening, tmp_path):
    from server.certificates import make_authority

    make_authority(tmp_path, "another")
    context = pinned_context((tmp_path / "ca.crt").read_text(), _pin(authority, "first"))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        _get(context, listening("first"))


def test_another_host_name_is_refused(authority, listening):
    context = pinned_context((authority / "ca.crt").read_text(), _pin(authority, "first"))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        _get(context, listening("first"), host="127.0.0.2")


def test_an_old_protocol_is_refused(authority):
    context = pinned_context((authority / "ca.crt").read_text(), "0" * 64)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_contract_what_the_node_replaces_in_flower_is_there():
    # The pinned client stands in for this name, and this one hands `verify` to httpx.
    from flwr.supernode import fleet_http_connection

    assert fleet_http_connection.FleetHttpClient is FleetHttpClient
    assert start_client_internal.time.sleep
    with pytest.raises(TypeError):
        FleetHttpClient("https://localhost", verify=False, unknown=1)
    client = FleetHttpClient("https://localhost", verify=False, timeout=3.0)
    assert isinstance(client._client, httpx.Client)
    client.close()
