"""How the daemon takes tasks from the merchant's node: Flower's private modules, first half.

`serve` takes the tasks over a Unix socket and hands back what ``answer`` makes of each message.
It does not unpack, import or run anything that came from the aggregator. The other half is
`client.flower_node`; nothing else here touches those modules. Pinned to one minor version of
flwr, held by `tests/client/test_flower_tasks.py`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from silotune.bundle import FOREIGN
from silotune.errors import MessageError

__all__ = ["serve"]

_SECONDS = 30.0
"""Of one call to the node."""
_LOOK = 0.1
"""Seconds between two looks for a task. The node is on this machine."""
_HEARTBEAT = 10.0
"""Seconds between two signs of life of a task; without any it is given up after 60."""
_WHOLE = 30.0
"""Seconds without a part of a message that the node has announced, after which it is given up."""
_OBJECTS = 4096
"""Parts of one message, at most: an array is cut into pieces of 5 MB."""


def serve(
    path: Path,
    secret: bytes,
    *,
    answer: Callable[[Message], Message],
    limit: int,
    stop: threading.Event,
    trouble: Callable[[Exception], None],
) -> None:
    """Answer the tasks of the node behind the socket ``path`` until ``stop``.

    Args:
        path: Unix socket of the node.
        secret: shared with it.
        answer: makes the reply, or a refusal; raises nothing.
        limit: bytes of a message; a longer one is refused unread.
        stop: ends it after the task in hand.
        trouble: hears what went wrong between here and the node.
    """
    method = "/flwr.proto.Runtime/AcquireTask"
    acquirer = _client(
        path, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={method})
    )
    asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    with contextlib.closing(acquirer):
        while not stop.is_set():
            try:
                found = acquirer.AcquireTask(asked)
                if found.HasField("task") and found.token:
                    _one_task(path, found.token, answer, limit, trouble)
                    continue
            except httpx.TransportError:
                # The node is being started again.
                stop.wait(5 * _LOOK)
            except Exception as error:  # noqa: BLE001  # a task that fails must not end the daemon
                trouble(error)
            stop.wait(_LOOK)


def _client(path: Path, interceptor: Any) -> RuntimeHttpClient:
    client = RuntimeHttpClient(
        "http://localhost",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
    )
    client._client.close()  # noqa: SLF001  # flwr gives its clients no other transport
    transport = httpx.HTTPTransport(uds=str(path))
    client._client = httpx.Client(transport=transport, timeout=_SECONDS)  # noqa: SLF001
    return client


def _one_task(
    path: Path,
    token: str,
    answer: Callable[[Message], Message],
    limit: int,
    trouble: Callable[[Exception], None],
) -> None:
    client = _client(path, RuntimeTokenHttpInterceptor(token))
    with contextlib.closing(client), _alive(client):
        ended = SubStatus.FAILED
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
            # The bundle that comes along stays closed.
            given.ClearField("fab")
            node = Node(node_id=given.context.node_id)
            # Messages carry the task that they belong to.
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = node.node_id
            message = _pull(client, node, given.run.run_id, limit)
            if given.run.fab_id == FOREIGN:
                trouble(MessageError("the run was started with an app bundle that is not ours."))
                message = make_message(metadata=message.metadata, content=RecordDict())
            _push(client, answer(message), node)
            ended = SubStatus.COMPLETED
        finally:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=ended))


@contextlib.contextmanager
def _alive(client: RuntimeHttpClient) -> Iterator[None]:
    over = threading.Event()

    def live() -> None:
        while not over.wait(_HEARTBEAT):
            with contextlib.suppress(httpx.HTTPError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    threading.Thread(target=live, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _TooLargeError(Exception):
    """More bytes or parts than a request can have."""


def _pull(client: RuntimeHttpClient, node: Node, run: int, limit: int) -> Message:
    """Return the task's message; one that cannot be read comes empty, and is refused as such."""
    found = client.PullMessages(PullAppMessagesRequest())
    tree, head = found.message_object_trees[0], found.messages_list[0]
    # What came with the head itself was not measured: it is left aside.
    head.ClearField("error")
    head.ClearField("content")
    head.content.SetInParent()
    bare = message_from_proto(head)
    pull = make_pull_object_fn_protobuf(client.PullObject, node, run)
    confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run)
    left = limit

    def counted(object_id: str) -> bytes:
        nonlocal left
        content = pull(object_id)
        left -= len(content)
        # An empty part: the node took no more of it.
        if left < 0 or len(content) < 2:
            raise _TooLargeError
        return content

    try:
        _refuse_many_parts(tree)
        message = pull_and_inflate_object_from_tree(
            tree,
            counted,
            confirm,
            return_type=Message,
            max_concurrent_pulls=1,
            max_time=_WHOLE,
        )
    except (ObjectPullError, httpx.TransportError):
        # The node never got the rest: of a run that ended meanwhile, it keeps the task and the
        # head. Nobody waits for an answer, and those behind it do. Or the node is gone: the
        # aggregator asks again, and a refusal in its place would be the last word.
        raise
    except Exception:  # noqa: BLE001  # whatever it is, it was the sender's making
        with contextlib.suppress(httpx.HTTPError):
            confirm(tree.object_id)
        return bare
    # What it says of itself inside, sender and run, is not what the node was told: left aside.
    return make_message(metadata=bare.metadata, content=_content(message))


def _content(message: Message) -> RecordDict:
    return message.content if message.has_content() else RecordDict()


def _refuse_many_parts(tree: ObjectTree) -> None:
    for count, _ in enumerate(iterate_object_tree(tree)):
        if count >= _OBJECTS:
            raise _TooLargeError


def _push(client: RuntimeHttpClient, message: Message, node: Node) -> None:
    message.metadata.__dict__["_message_id"] = message.object_id
    bare = message_to_proto(remove_content_from_message(message))
    run = message.metadata.run_id
    with no_object_id_recompute():
        tree = get_object_tree(message)
        asked = PushAppMessagesRequest(messages_list=[bare], message_object_trees=[tree])
        wanted = client.PushMessages(asked)
        push_objects(
            get_all_nested_objects(message),
            make_push_object_fn_protobuf(
                client.PushObject, node, run_id=run, session_id=wanted.session_id
            ),
            object_ids_to_push=set(wanted.objects_to_push),
        )
