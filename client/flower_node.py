"""The merchant's node, which talks to the aggregator: Flower's private modules, second half.

`run_node` is Flower's SuperNode over a connection that accepts one server certificate only. It
holds messages, sees no data and needs no rights. The first half is `client.flower_tasks`. Pinned
to one minor version of flwr, held by `tests/client/test_flower_node.py`.
"""

import codecs
import contextlib
import hashlib
import logging
import os
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.common.constant import Status
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
)
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.first_look import trouble_with
from client.node_limits import limit_messages, limited_client
from silotune.logs import event, why

__all__ = ["NodeSettings", "pinned_context", "run_node"]

_SLEEP = 1.0
"""Seconds of the node's longest pause; Flower's own is 3."""
_RETRY_MAX = 5
"""Seconds between two tries to reach the aggregator, at most; Flower's own is 20."""
_STUCK = 5.0
"""Seconds that the node waits for what cannot come, before it ends to be started again."""
_NODE_MEMORY = 4 * 2**30
"""Bytes of address space of the node: what a message may take, at the very most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSettings:
    """What a SuperNode needs to know."""

    address: str
    """HOST:PORT of the aggregator."""
    ca: str
    """Certificate of its authority, PEM."""
    certificate_sha256: str
    """Of its own, over the DER form."""
    key: Path
    """Of the node."""
    secret: Path
    """Shared with the daemon."""
    socket: Path
    """Where the daemon takes tasks."""
    number: Path
    """File that remembers the node's number."""
    contact: Path
    """File with the time of the aggregator's last answer, seconds since 1970."""
    user: str | None
    """Account to become where started as root. None: stay."""


def pinned_context(ca: str, certificate_sha256: str) -> ssl.SSLContext:
    """Return a TLS context that accepts this server certificate and no other of its authority."""

    class Pinned(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            seen = hashlib.sha256(self.getpeercert(binary_form=True) or b"").hexdigest()
            if seen != certificate_sha256:
                raise ssl.SSLCertVerificationError(
                    f"the server's certificate is {seen[:16]}…, the pinned one "
                    f"{certificate_sha256[:16]}…"
                )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca)
    context.sslsocket_class = Pinned
    return context


def run_node(settings: NodeSettings, on_ready: Callable[[], None]) -> None:
    """Be the SuperNode until told to stop.

    Reads key and secret and opens the socket, then gives up its rights, then connects.
    """
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.retry import http_retry
    from flwr.supernode import start_client_internal as flower
    from flwr.supernode.main import create_app
    from flwr.supernode.nodestate import NodeStateFactory

    key = load_pem_private_key(settings.key.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the node's key is not an elliptic-curve key")
    secret = settings.secret.read_bytes()
    number = os.open(settings.number, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    contact = os.open(settings.contact, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ready = _opened(settings.socket)
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    app = create_app(state_factory=state, superexec_auth_secret=secret)
    for late in ("cp437", "idna"):
        # Imported on first use, when this Python's own folder may be closed to the account.
        codecs.lookup(late)
    _give_up_rights(settings.user)
    _say_trouble(settings)
    _deactivate(_pin(settings, contact), settings, key, number)
    config = uvicorn.Config(app, log_level="warning", log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    # A thread of its own: uvicorn then leaves the signals alone.
    threading.Thread(target=server.run, args=([ready],), name="runtime", daemon=True).start()
    known = state.state()
    remember = known.set_node_id

    def connected(node: int) -> None:
        remember(node)
        os.pwrite(number, f"{node:<24}".encode(), 0)
        on_ready()

    vars(known)["set_node_id"] = connected
    store = state.objectstore_factory.store()
    vars(flower)["pull_objects"] = limit_messages(vars(flower)["pull_objects"], store, _refused)
    # Its pauses are written into it.
    vars(flower)["time"] = SimpleNamespace(sleep=_Pauses(known).sleep)
    vars(http_retry)["MAX_RETRY_DELAY"] = _RETRY_MAX
    flower.start_client_internal(
        state_factory=state,
        server_address=settings.address,
        node_config={},
        root_certificates=settings.ca.encode("ascii"),
        insecure=False,
        authentication_keys=(key, key.public_key()),
        isolation="process",
        superexec_auth_secret=secret,
        runtime_dependency_install=False,
    )


class _Pauses:
    """Flower's node sleeps here, and ends where it would wait for ever.

    It takes one message at a time and waits for its answer, even when the daemon that had it is
    gone; and it sends an answer only after it has taken a message.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._since: float | None = None

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _SLEEP))
        # It waits 3 s for a message, and 0.5 s for an answer or its parts.
        why = self._unsent() if seconds > 1 else self._unanswered()
        now = time.monotonic()
        self._since = None if not why else self._since or now
        if self._since is not None and now - self._since > _STUCK:
            event("starts again", logging.WARNING, words=why)
            sys.exit(1)

    def _unanswered(self) -> str:
        open_tasks = self._state.get_tasks(
            statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]
        )
        # One that is there to be sent is an answer: the next pause would be the next message's.
        done = open_tasks or self._unsent()
        return "" if done else "a message without answer, and nobody works on it"

    def _unsent(self) -> str:
        with self._state.lock_msg_store:
            left = any(
                entry.message.metadata.reply_to_message_id and not entry.is_retrieved
                for entry in self._state.msg_store.values()
            )
        return "an answer that would be sent after the next" if left else ""


def _say_trouble(settings: NodeSettings) -> None:
    context = pinned_context(settings.ca, settings.certificate_sha256)
    trouble = trouble_with(settings.address, context)
    if trouble is not None:
        event("aggregator", logging.WARNING, words=trouble)


def _opened(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ready.bind(str(path))
    path.chmod(0o600)
    ready.listen(64)
    return ready


def _give_up_rights(user: str | None) -> None:
    import pwd

    if user is not None and os.geteuid() == 0:
        found = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(found.pw_gid)
        os.setuid(found.pw_uid)
    # A key in a core file would outlive the process; a huge message ends it, not the machine.
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _NODE_MEMORY)):
        resource.setrlimit(limit, (value, value))


def _pin(settings: NodeSettings, contact: int) -> type[FleetHttpClient]:
    """Let Flower's node connect to the pinned certificate only; return its client.

    Args:
        settings: name the certificate.
        contact: open file that gets the time of each answer.
    """
    from flwr.supernode import fleet_http_connection as connection

    def heard(_: httpx.Response) -> None:
        # A full disk must not end the connection.
        with contextlib.suppress(OSError):
            os.pwrite(contact, f"{time.time():<24.3f}".encode("ascii"), 0)

    client = limited_client(
        lambda: pinned_context(settings.ca, settings.certificate_sha256), heard, _refused
    )
    vars(connection)["FleetHttpClient"] = client
    return client


def _refused(error: Exception) -> None:
    event("refused", logging.WARNING, **why(error, sees_data=False))


def _deactivate(
    connect: type[FleetHttpClient],
    settings: NodeSettings,
    key: ec.EllipticCurvePrivateKey,
    number: int,
) -> None:
    """Tell the aggregator that the node of before is gone; it refuses a second one otherwise."""
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    before = os.pread(number, 64, 0).strip()
    if not before.isdigit():
        return
    client = connect.from_server_address(
        settings.address,
        False,
        settings.ca.encode("ascii"),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    )
    with contextlib.closing(client):
        while True:
            try:
                client.DeactivateNode(DeactivateNodeRequest(node_id=int(before)))
            except httpx.TransportError as error:
                # Away. When it is back, it would refuse this node if it had not been told.
                if not _is_of_tls(error):
                    time.sleep(_SLEEP)
                    continue
            except httpx.HTTPError:
                # It is offline already.
                pass
            return


def _is_of_tls(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("certificate", "ssl", "tls"))
