"""The aggregator's side of Flower's private modules; nothing else here touches them.

Pinned to one minor version of flwr, held by `tests/server/test_flower_link.py`. The SuperLink's
own interfaces are on a Unix socket that only the operator's account can open; merchants come in
by TLS, past `server.listener`.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.retry.retry_invoker import exponential
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from server.link_limits import limit_replies
from server.link_replies import Replies
from silotune import bundle

_Client = TypeVar("_Client", bound=ProtobufClient)

__all__ = ["BUNDLE", "RUN_ENDED", "Control", "Node", "link_app", "next_task", "task_grid"]

RUN_ENDED = (RunNotRunningException,)
"""What a grid raises whose run was stopped or given up. No `Exception` in Flower."""

_SECONDS = 30.0
"""Of one call to the SuperLink."""
_HEARTBEAT = 10.0
"""Seconds between two signs of life of a task; without any it is given up after 60."""
_RETRY_MAX = 2
"""Seconds between two tries to reach the SuperLink, at most; Flower's own is 20."""
_UPLOAD_IDLE = 60
"""Seconds without a piece of a message, after which what its sender left behind is given up.
Flower's own is 180, and the run waits for it."""
BUNDLE = Fab(bundle.BUNDLE_SHA256, bundle.BUNDLE, {})
"""The app bundle that Flower asks for. It holds no code."""


def link_app(database: Path, secret: bytes) -> Any:
    """Return the SuperLink as an ASGI application: node keys needed, process isolation.

    Args:
        database: SQLite file of its state.
        secret: without it no task can be taken.
    """
    from flwr.supercore.corestate import sql_corestate
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app
    from flwr.superlink.servicer.fleet import fleet_handlers

    limit_replies(fleet_handlers)

    vars(sql_corestate)["OBJECT_PUSH_SESSION_TTL_SECONDS"] = _UPLOAD_IDLE
    settings = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
    return create_app(settings, SuperLinkLifespan)


def _through(client: _Client, socket: Path) -> _Client:
    """Let ``client`` speak through the Unix socket."""
    client._client.close()  # noqa: SLF001  # flwr gives its clients no other transport
    client._client = httpx.Client(  # noqa: SLF001
        transport=httpx.HTTPTransport(uds=str(socket)), timeout=_SECONDS
    )
    return client


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A merchant's node as the SuperLink knows it."""

    node_id: int
    name: str
    status: str
    """'registered', 'online', 'offline' or 'unregistered'."""
    public_key: bytes


class Control:
    """The SuperLink's Control API, for the operator. Use it in ``with``.

    Raises:
        httpx.HTTPError: the SuperLink is not there or refuses.
    """

    def __init__(self, socket: Path) -> None:
        interceptors = [RuntimeVersionHttpInterceptor(component_name="CLI")]
        client = ControlHttpClient("http://localhost", interceptors=interceptors)
        self._client = _through(client, socket)

    def __enter__(self) -> "Control":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def register(self, public_key: bytes, name: str) -> int:
        """Let the node with ``public_key`` (PEM) in; return its number."""
        asked = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._client.RegisterNode(asked).node_id)

    def nodes(self) -> list[Node]:
        """Return all nodes that were ever registered."""
        return [
            Node(node_id=n.node_id, name=n.name, status=n.status, public_key=n.public_key)
            for n in self._client.ListNodes(ListNodesRequest()).nodes_info
        ]

    def start_run(self) -> int:
        """Make a run of the empty bundle; return its number."""
        return int(self._client.StartRun(StartRunRequest(fab=fab_to_proto(BUNDLE))).run_id)

    def stop_run(self, run: int) -> None:
        """End a run, if it still is one."""
        with contextlib.suppress(httpx.HTTPStatusError):
            self._client.StopRun(StopRunRequest(run_id=run))


def next_task(socket: Path, secret: bytes) -> tuple[int, str] | None:
    """Take the oldest waiting task of the SuperLink: its run and its token, or None."""
    method = "/flwr.proto.Runtime/AcquireTask"
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={method}),
    ]
    client = _through(RuntimeHttpClient("http://localhost", interceptors=interceptors), socket)
    with contextlib.closing(client):
        found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
    if not found.HasField("task") or not found.token:
        return None
    return int(found.task.run_id), str(found.token)


class _SocketGrid(HttpGrid):
    """Flower's grid through the Unix socket; replies are pulled one by one."""

    def __init__(self, socket: Path, token: str) -> None:
        self._socket = socket
        self._replies: Replies | None = None
        super().__init__("localhost", insecure=True, token=token)
        self._retry_invoker.wait_gen_factory = lambda: exponential(max_delay=_RETRY_MAX)

    def _connect(self) -> None:
        super()._connect()
        if self._client is not None:
            _through(self._client, self._socket)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield replies as they come: one that is still being sent holds up no other."""
        if self._replies is None:
            self._replies = Replies(lambda: self._runtime_client, self.node, self.run.run_id)
        for message_id in sorted(message_ids):
            reply = self._replies.pull(message_id)
            if reply is not None:
                yield reply


@contextlib.contextmanager
def task_grid(socket: Path, token: str) -> Iterator[_SocketGrid]:
    """Hold the task with ``token`` and yield its grid; then tell the SuperLink how it ended."""
    grid = _SocketGrid(socket, token)
    client = grid._runtime_client  # noqa: SLF001  # flwr's own executor does the same
    over = threading.Event()

    def live() -> None:
        while not over.wait(_HEARTBEAT):
            with contextlib.suppress(httpx.HTTPError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    ended = SubStatus.FAILED
    try:
        # A token that opens nothing would make Flower's retries interrupt the whole process.
        retries, client._retry_invoker = client._retry_invoker, None  # noqa: SLF001
        given = client.PullTaskInput(PullTaskInputRequest())
        client._retry_invoker = retries  # noqa: SLF001
        # Messages carry the task that they belong to.
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        threading.Thread(target=live, name="heartbeat", daemon=True).start()
        yield grid
        ended = SubStatus.COMPLETED
    finally:
        over.set()
        client._retry_invoker = None  # noqa: SLF001  # the end is told once, not for ever
        with contextlib.suppress(httpx.HTTPError):
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=ended))
        grid.close()
