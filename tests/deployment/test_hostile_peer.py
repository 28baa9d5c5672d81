"""A network peer that holds the authority's certificate, and no enrolled key."""

import contextlib
import importlib
import pkgutil
import shutil
import socket
import ssl
import typing

import flwr.proto
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from server.certificates import make_authority, make_server_certificate
from server.flower_link import link_app
from server.listener import MERCHANT_PATHS
from tests.deployment.hostile_link import HostileLink
from tests.deployment.hostile_server import ledger_bytes
from tests.deployment.test_federation import _alone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    # Of the database migrations that Flower runs.
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
]

# What a node calls before it is known, and what its own key must sign.
MERCHANTS = {path.rpartition("/")[2].replace("-", "") for _, path in MERCHANT_PATHS}


@pytest.fixture(scope="module")
def peer(federation):
    """A client that trusts the authority."""
    context = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    address = f"https://127.0.0.1:{federation.port}"
    with httpx.Client(base_url=address, verify=context, timeout=30) as client:
        yield client


def _routes(folder):
    app = link_app(folder / "state.db", b"s" * 32)
    for context in iter_route_contexts(app.routes):
        route = context.route
        path = context.path if isinstance(route, APIRoute) else route.path
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, path


def test_every_route_of_the_application_is_shut(peer, tmp_path):
    routes = set(_routes(tmp_path))
    assert len(routes) > 60
    assert routes >= MERCHANT_PATHS
    kind = {"content-type": "application/protobuf"}
    for method, path in sorted(routes):
        status = peer.request(method, path, headers=kind).status_code
        if (method, path) == ("GET", "/health"):
            assert status == 200
        else:
            # A merchant's path without an enrolled key; all others do not exist.
            assert status == (401 if (method, path) in MERCHANT_PATHS else 404), path


def _grpc_names():
    """Every method of every service that Flower describes, as gRPC names it."""
    for module in pkgutil.iter_modules(flwr.proto.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"flwr.proto.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from (f"/{service.full_name}/{m.name}" for m in service.methods)


def test_no_grpc_method_is_there(peer):
    names = list(_grpc_names())
    assert len(names) > 50
    kind = {"content-type": "application/grpc"}
    assert {peer.post(name, headers=kind).status_code for name in names} == {404}


@pytest.mark.parametrize("signed", [False, True], ids=["without a key", "with a key of its own"])
def test_every_call_of_flowers_own_clients_is_refused(federation, signed):
    tried = 0
    for kind in (ControlHttpClient, RuntimeHttpClient, FleetHttpClient):
        with contextlib.closing(_client(federation, kind, signed)) as client:
            for name, call in vars(kind).items():
                if not name[0].isupper():
                    continue
                asked = typing.get_type_hints(call)["request"]()
                with pytest.raises(httpx.HTTPStatusError) as caught:
                    # Some are streams: they begin with the first step.
                    next(iter(getattr(client, name)(asked)))
                mine = kind is FleetHttpClient and name.lower() in MERCHANTS
                assert caught.value.response.status_code == (401 if mine else 404), name
                tried += 1
    assert tried > 50


def _client(federation, kind, signed):
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = ec.generate_private_key(ec.SECP384R1())
    more = [NodeAuthHttpInterceptor(key, key.public_key())] if signed else []
    return kind.from_server_address(
        f"127.0.0.1:{federation.port}",
        False,
        (federation.server / "ca.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="CLI"), *more],
    )


def test_plain_http_is_refused(federation):
    for said in (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", federation.port), 20) as plain:
            plain.settimeout(20)
            plain.sendall(said)
            with contextlib.suppress(OSError):
                assert not plain.recv(4096).startswith(b"HTTP/1.1 2")


@pytest.mark.parametrize("authority", ["same", "another"])
def test_a_swapped_certificate_hears_nothing(federation, authority):
    """The aggregator's port with another certificate: the node ends the connection unheard."""
    silo = federation.silos[0]
    folder = federation.root / f"swapped-{authority}"
    folder.mkdir()
    if authority == "same":
        for name in ("ca.crt", "ca.key"):
            shutil.copy(federation.server / name, folder / name)
    else:
        make_authority(folder, "another")
    make_server_certificate(folder, "aggregator", ["127.0.0.1"])
    before = ledger_bytes(silo)
    federation.silotune("server", "stop", federation.server)
    link = HostileLink(federation.port, folder / "server.crt", folder / "server.key", {}, 0)
    try:
        # A node that starts, and those that run.
        stranger = folder / "silo"
        (stranger / "run").mkdir(parents=True)
        for name in ("client.toml", "superexec.secret", "node.key"):
            shutil.copy(silo / name, stranger / name)
        assert "SuperNode ID" not in _alone("client.node", stranger, timeout=20)
        assert link.asked == []
        assert link.shaken > 0
    finally:
        link.close()
        federation.silotune("server", "start", federation.server)
        federation.until_online(2, timeout=300)
    assert ledger_bytes(silo) == before
